"""Signature files keep what a fingerprint holds, and nothing hostile gets further than one error."""

from __future__ import annotations

import contextlib
import json
import struct
import tracemalloc
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import replace

from benchmarks.synthetic import small_model
from fingerprint.errors import InputNotFoundError, MalformedSignatureError, SignatureError, UsageError
from signatures.container import pack, unpack
from signatures.signature import decode, encode, is_signature, read_signature, sign, write_signature

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fingerprint.records import Fingerprint


def assert_same(left: object, right: object, tolerance: float = 0.0) -> None:
    """Compare records, arrays within ``tolerance`` of the largest absolute value of each row."""
    assert type(left) is type(right)
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        assert left.shape == right.shape
        assert left.dtype == right.dtype
        bound = tolerance * np.max(np.abs(left), axis=-1, keepdims=True, initial=0) if tolerance else 0
        assert np.all(np.abs(left - right) <= bound)
    elif isinstance(left, Struct):
        for name in left.__struct_fields__:
            assert_same(getattr(left, name), getattr(right, name), tolerance)
    elif isinstance(left, tuple) and isinstance(right, tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other, tolerance)
    else:
        assert left == right


@pytest.fixture(scope="module")
def model() -> Fingerprint:
    return small_model(1)


def test_a_signature_holds_the_fingerprint_within_the_stated_error(model: Fingerprint) -> None:
    assert_same(model, sign(model).fingerprint, 1 / 254)


def test_what_was_read_is_written_again_to_the_bit(model: Fingerprint) -> None:
    signature = sign(model)
    data = encode(signature)
    assert encode(decode(data)) == data
    assert_same(signature, decode(data))


def test_a_signature_written_to_a_file_is_read_back(model: Fingerprint, tmp_path) -> None:
    path = tmp_path / "model.fpsig"
    write_signature(path, sign(model))
    assert is_signature(path)
    assert read_signature(path).identity == sign(model).identity
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.fpsig"]


@pytest.fixture(scope="module")
def tiny() -> bytes:
    return encode(sign(small_model(3, layers=1, width=32, hidden=32)))


def decode_or_refuse(data: bytes, good: bytes) -> None:
    """Hostile bytes give one of the errors of signatures, or a signature of the same contents."""
    try:
        signature = decode(data)
    except SignatureError:
        return
    assert signature.identity == decode(good).identity


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bits_are_noticed(tiny: bytes, data: st.DataObject) -> None:
    bad = bytearray(tiny)
    for _ in range(data.draw(st.integers(1, 4))):
        bad[data.draw(st.integers(0, len(tiny) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    decode_or_refuse(bytes(bad), tiny)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(end=st.integers(0, 40_000), more=st.binary(max_size=9))
def test_truncated_and_extended_files_are_refused(tiny: bytes, end: int, more: bytes) -> None:
    bad = tiny[:end] + more
    if bad != tiny:
        with pytest.raises(MalformedSignatureError):
            decode(bad)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_forged_sections_with_right_checksums_are_refused_or_read(tiny: bytes, data: st.DataObject) -> None:
    """A forger fixes every checksum: only the checks of the contents are left to stop what is wrong."""
    envelope = unpack(tiny)
    sections = list(envelope.sections)
    number = data.draw(st.integers(0, len(sections) - 1))
    content = bytearray(sections[number].data)
    for _ in range(data.draw(st.integers(1, 3))):
        kind = data.draw(st.sampled_from(["byte", "word", "cut", "insert"]))
        at = data.draw(st.one_of(st.integers(0, 64), st.integers(0, max(len(content) - 1, 0)))) % max(len(content), 1)
        if kind == "byte" and content:
            content[at] = data.draw(st.integers(0, 255))
        elif kind == "word" and len(content) >= 8:
            at -= at % 4
            content[at : at + 4] = data.draw(st.sampled_from([b"\xff" * 4, bytes(4), b"\xff\xff\xff\x7f", b"\1\0\0\0"]))
        elif kind == "cut":
            del content[at : at + data.draw(st.integers(1, 64))]
        else:
            content[at:at] = data.draw(st.binary(min_size=1, max_size=64))
    sections[number] = replace(sections[number], data=bytes(content))
    forged, _ = pack(envelope.header, sections, created=envelope.created, tool=envelope.tool)
    try:
        signature = decode(forged)
    except SignatureError:
        return
    assert decode(encode(signature)).fingerprint.elements == signature.fingerprint.elements


SCALARS = st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats(-1e300, 1e300) | st.text()
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_forged_headers_are_refused_or_read(tiny: bytes, data: st.DataObject) -> None:
    envelope = unpack(tiny)
    header = json.loads(json.dumps(envelope.header))
    place = header
    path = data.draw(st.sampled_from(["", "", "parameters", "words", "dtypes"]))
    if path:
        place = header[path]
    key = data.draw(st.one_of(st.sampled_from(sorted(place)), st.text(max_size=5)))
    if data.draw(st.booleans()):
        place[key] = data.draw(JSON)
    else:
        place.pop(key, None)
    forged, _ = pack(header, envelope.sections, created=envelope.created, tool=envelope.tool)
    with contextlib.suppress(SignatureError):
        decode(forged)


def test_labels_that_no_file_can_hold_are_cut_and_escaped(model: Fingerprint) -> None:
    odd = replace(model, claims={"lone \ud800": "x" * 100_000}, findings=(("code", "\udfff"),))
    named = replace(odd, tensors=(replace(odd.tensors[0], name="bad \ud800 name"), *odd.tensors[1:]))
    found = decode(encode(sign(named))).fingerprint
    assert list(found.claims) == ["lone \\ud800"]
    assert len(found.claims["lone \\ud800"]) == 4096
    assert found.findings == (("code", "\\udfff"),)
    assert found.tensors[0].name == "bad \\ud800 name"


@pytest.mark.parametrize("kind", ["NAME", "TENS", "DIGS", "STAT", "META", "NEUR"])
def test_sections_that_must_be_there_are_missed(tiny: bytes, kind: str) -> None:
    envelope = unpack(tiny)
    rest = [section for section in envelope.sections if section.kind != kind]
    forged, _ = pack(envelope.header, rest, created=0, tool="")
    with pytest.raises(MalformedSignatureError, match=kind):
        decode(forged)


def test_sections_that_swell_when_unpacked_are_refused_before_that(tiny: bytes) -> None:
    """70 MB of zeros in a section of 70 kB: the bound on the whole is checked on the table."""
    bomb = zlib.compress(bytes(70 << 20), 9)
    forged = with_section(tiny, b"ZERO", bomb, 70 << 20)
    peak = peak_of_refusal(decode, forged)
    assert peak < 4 << 20
    lying = with_section(tiny, b"ZERO", bomb, 1000)  # the table says 1000 bytes, the stream has more
    peak = peak_of_refusal(decode, lying)
    assert peak < 4 << 20


def test_a_model_of_zeros_is_not_taken_for_a_bomb() -> None:
    """Equal digests and no samples shrink to nothing; such a file is written without compression."""
    model = small_model(1)
    record = replace(model.tensors[0], digest=bytes(32), casts={"BF16": bytes(32)}, sketch=None, axes=())
    signature = sign(replace(model, tensors=(record,) * 40_000, neurons=()))
    data = encode(signature)
    assert len(data) > 4_000_000
    assert len(decode(data).fingerprint.tensors) == 40_000


@pytest.mark.parametrize("count", [1 << 17, 1 << 32, 1 << 60, -1])
def test_counts_that_the_file_cannot_hold_cost_no_memory(tiny: bytes, count: int) -> None:
    envelope = unpack(tiny)
    for name in ("tensors", "neurons"):
        header = envelope.header | {name: count}
        forged, _ = pack(header, envelope.sections, created=0, tool="")
        peak = peak_of_refusal(decode, forged)
        assert peak < 4 << 20


@pytest.mark.parametrize("width", [0, -1, 1 << 20, 1 << 62])
@pytest.mark.parametrize("name", ["sketch_width", "index_width", "axis_width", "frame_width"])
def test_widths_that_cannot_be_are_refused(tiny: bytes, name: str, width: int) -> None:
    envelope = unpack(tiny)
    parameters = envelope.header["parameters"]
    assert isinstance(parameters, dict)
    header = envelope.header | {"parameters": parameters | {name: width}}
    forged, _ = pack(header, envelope.sections, created=0, tool="")
    with pytest.raises(SignatureError):
        decode(forged)


def test_other_files_are_told_apart(tmp_path: Path, tiny: bytes) -> None:
    (tmp_path / "text").write_text("not a signature")
    (tmp_path / "short").write_bytes(tiny[:20])
    assert not is_signature(tmp_path / "text")
    assert not is_signature(tmp_path / "absent")
    assert not is_signature(tmp_path)
    assert is_signature(tmp_path / "short")
    for name in ("text", "short"):
        with pytest.raises(MalformedSignatureError, match=name):
            read_signature(tmp_path / name)
    with pytest.raises(InputNotFoundError, match="absent"):
        read_signature(tmp_path / "absent")
    with pytest.raises(UsageError, match="cannot be written"):
        write_signature(tmp_path / "none" / "file", decode(tiny))


def test_a_file_larger_than_any_signature_is_not_read(tmp_path: Path, tiny: bytes) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.write(tiny)
        file.truncate(1 << 40)
    peak = peak_of_refusal(read_signature, tmp_path / "large")
    assert peak < 4 << 20


def with_section(data: bytes, kind: bytes, stored: bytes, raw: int) -> bytes:
    """The file with one more compressed section whose table entry says ``raw`` bytes."""
    length, count = struct.unpack_from("<II", data, 12)
    front = bytearray(data[: 64 + length + 64 * count])
    for number in range(count):
        at = 64 + length + 64 * number + 8
        struct.pack_into("<Q", front, at, struct.unpack_from("<Q", front, at)[0] + 64)
    front += struct.pack("<4sIQQQ32s", kind, 1, len(data) + 64, len(stored), raw, bytes(32))
    struct.pack_into("<I", front, 16, count + 1)
    front[20:24] = bytes(4)
    struct.pack_into("<I", front, 20, zlib.crc32(front))
    return bytes(front) + data[64 + length + 64 * count :] + stored


def peak_of_refusal(call: Callable[[Any], object], argument: object) -> int:
    """Bytes that Python had allocated at most until ``call`` refused ``argument`` as malformed."""
    tracemalloc.start()
    try:
        with pytest.raises(MalformedSignatureError):
            call(argument)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
