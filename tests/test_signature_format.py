"""The signature format is what docs/signature-format.md says: golden file, a stranger's reader, sizes, versions."""

from __future__ import annotations

import struct
import zlib
from datetime import UTC, datetime
from fractions import Fraction
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from msgspec.structs import replace

from benchmarks.synthetic import deepseek_671b, llama_8b, small_model
from fingerprint.errors import MalformedSignatureError, SignatureVersionError, UsageError
from fingerprint.parameters import Parameters
from fingerprint.records import (
    AxisSample,
    ChannelSample,
    Fingerprint,
    LayerGram,
    NeuronSample,
    TensorRecord,
    TensorStatistics,
)
from fingerprint.vocabulary import Axis, ChannelKind, Circuit, Content, Frame, Role
from signatures.container import MINOR, Section, pack
from signatures.signature import Signature, decode, encode, read_signature, sign

if TYPE_CHECKING:
    from types import ModuleType

GOLDEN = Path(__file__).parent / "data" / "golden.fpsig"
GOLDEN_IDENTITY = "sha256:df3c12a15ae23e259895ae9da95f160ed6889d2dbd2d092b3e5b6b7a4855c49f"
GOLDEN_TIME = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
GOLDEN_PARAMETERS = Parameters(
    sketch_width=4,
    index_width=2,
    axis_samples=3,
    axis_width=4,
    frame_width=4,
    neuron_samples=3,
    gauge_samples=2,
    minimum_elements=16,
)


@pytest.fixture(scope="module")
def reader() -> ModuleType:
    """The stranger's program, loaded as a file of its own."""
    path = Path(__file__).with_name("reader80.py")
    spec = util.spec_from_file_location("reader80", path)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def numbers(start: int, *shape: int) -> np.ndarray:
    """Small exact numbers without a generator, so that they are the same everywhere."""
    values = np.arange(start, start + int(np.prod(shape))) * 7919 % 1009 - 504
    return (values / 256).astype(np.float32).reshape(shape)


def golden_fingerprint() -> Fingerprint:
    """One of everything: a gated MLP in three frames, an expert, channels, a vector without casts, a scalar."""
    statistics = TensorStatistics(0.25, 1.5, 4.0, 3.125, 0.5, 2, 4)
    indices = np.array([1, 5, 6], np.int64)
    rows = AxisSample(Axis.NEURON, 0, 8, indices, numbers(1, 3, 4))
    columns = AxisSample(Axis.RESIDUAL, 1, 9, np.array([0, 8], np.int64), numbers(50, 2, 4))
    gate = TensorRecord(
        name="layers.0.gate",
        role=Role.GATE,
        layer=0,
        expert=None,
        shape=(8, 9),
        oriented=True,
        dtype="BF16",
        content=Content.WEIGHTS,
        digest=bytes(range(32)),
        casts={"F8_E4M3": bytes(range(32, 64))},
        statistics=statistics,
        sketch=numbers(100, 4, 4),
        axes=(rows, columns),
    )
    tensors = (
        gate,
        replace(gate, name="layers.0.up", role=Role.UP, digest=bytes(range(1, 33)), axes=(rows,)),
        replace(gate, name="layers.0.дown", role=Role.DOWN, shape=(9, 8), expert=7, sketch=None, axes=(), casts={}),
        replace(gate, name="", role=Role.NORM_GAIN, shape=(9,), content=Content.VECTOR, sketch=None, axes=(), casts={}),
        replace(
            gate,
            name="step",
            role=Role.BUFFER,
            layer=None,
            shape=(),
            oriented=False,
            dtype="I64",
            content=Content.INTEGER,
            digest=b"",
            casts={},
            sketch=None,
            axes=(),
        ),
    )
    gated = NeuronSample(
        0, None, "fixed", "silu", 8, (0, 1, 2), indices, numbers(7, 3, 4), numbers(3, 3, 4), 2 * numbers(9, 3, 4)
    )
    plain = replace(gated, expert=7, activation="", tensors=(0, -1, 2), indices=indices[:2])
    plain = replace(plain, gate=numbers(11, 2, 4), up=None, down=np.zeros((2, 4), np.float32))
    anchored = replace(gated, frame=Frame.ANCHORS, gate=numbers(13, 3, 4))
    own = replace(gated, frame=Frame.SELF, gate=numbers(2, 3, 5), up=numbers(4, 3, 5), down=numbers(6, 3, 5))
    values = ChannelSample(
        0, Frame.ANCHORS, ChannelKind.VALUE_OUTPUT, 8, 4, (0, 2), np.array([0, 5], np.int64), numbers(8, 2, 2, 4)
    )
    pairs = replace(values, layer=None, kind=ChannelKind.ROTARY, size=4, head=2, indices=np.array([3], np.int64))
    channels = (values, replace(pairs, parts=numbers(5, 4, 1, 4)))
    gram = LayerGram(0, Frame.ANCHORS, Circuit.DOWN_UP, (2, 1), numbers(3, 4))
    grams = (gram, replace(gram, layer=None, frame=Frame.POSITIONS, circuit=Circuit.QUERY_KEY, tensors=(0, 1)))
    return Fingerprint(
        parameters=GOLDEN_PARAMETERS,
        depth="full",
        format="safetensors",
        files=2,
        stored_bytes=1 << 40,
        bytes_read=12345,
        dtypes={"BF16": 4, "I64": 1},
        complete=False,
        tensors=tensors,
        neurons=(gated, plain, anchored, replace(own, descriptors=numbers(5, 3, 6))),
        findings=(("missing-shard", "a shard « 2 » is absent"),),
        claims={"architecture": "Golden", "név": "érték\n"},
        channels=channels,
        grams=grams,
    )


def golden_signature() -> Signature:
    return replace(sign(golden_fingerprint(), created=GOLDEN_TIME), tool="weightprint golden")


def test_the_golden_file_is_read_as_what_it_was_made_of() -> None:
    signature = read_signature(GOLDEN)
    assert signature.identity == GOLDEN_IDENTITY
    assert signature.created == GOLDEN_TIME
    assert signature.tool == "weightprint golden"
    want = golden_fingerprint()
    got = signature.fingerprint
    assert _bare_of(got) == _bare_of(want)
    for one, other in zip(got.tensors, want.tensors, strict=True):
        assert replace(one, sketch=None, axes=()) == replace(other, sketch=None, axes=())
        assert (one.sketch is None) == (other.sketch is None)
        assert other.sketch is None or np.array_equal(one.sketch, other.sketch)
        assert [sample.indices.tolist() for sample in one.axes] == [sample.indices.tolist() for sample in other.axes]
    for mine, its in zip(got.neurons, want.neurons, strict=True):
        assert mine.tensors == its.tensors
        assert (mine.up is None) == (its.up is None)
        assert np.max(np.abs(mine.down - its.down)) <= np.max(np.abs(its.down)) / 254
        assert (mine.descriptors is None) == (its.descriptors is None)
    for channel, other in zip(got.channels, want.channels, strict=True):
        assert replace(channel, indices=None, parts=None) == replace(other, indices=None, parts=None)
        assert channel.indices.tolist() == other.indices.tolist()
        assert np.max(np.abs(channel.parts - other.parts)) <= np.max(np.abs(other.parts)) / 254
    for gram, its in zip(got.grams, want.grams, strict=True):
        assert replace(gram, values=None) == replace(its, values=None)
        assert np.allclose(gram.values, its.values, rtol=1 / 2048)


def _bare_of(fingerprint: Fingerprint) -> Fingerprint:
    return replace(fingerprint, tensors=(), neurons=(), channels=(), grams=())


def test_the_golden_contents_are_still_written_in_the_same_way() -> None:
    """Identity covers header and sections; the bytes may differ by the version of zlib alone."""
    assert golden_signature().identity == GOLDEN_IDENTITY
    mine, golden = encode(golden_signature()), GOLDEN.read_bytes()
    assert _uncompressed(mine) == _uncompressed(golden)


def test_a_strangers_reader_is_short_and_independent() -> None:
    text = Path(__file__).with_name("reader80.py").read_text()
    assert len(text.splitlines()) < 80
    assert not any(word in text for word in ("import fingerprint", "import signatures", "from fingerprint", "from sig"))


@pytest.mark.parametrize("make", [golden_signature, lambda: sign(small_model(4)), lambda: sign(_bare())])
def test_a_stranger_reads_the_same(reader: ModuleType, make: Any) -> None:
    signature = make()
    found = reader.read(encode(signature))
    fingerprint = signature.fingerprint
    assert found["identity"] == signature.identity
    assert found["created"] == int(signature.created.timestamp())
    assert found["names"] == [record.name for record in fingerprint.tensors]
    assert found["roles"] == [record.role for record in fingerprint.tensors]
    assert found["digests"] == [record.digest for record in fingerprint.tensors]
    assert [tuple(shape) for shape in found["shapes"]] == [record.shape for record in fingerprint.tensors]
    assert found["layers"].tolist() == [-1 if record.layer is None else record.layer for record in fingerprint.tensors]
    assert found["statistics"][0][3].tolist() == [record.statistics.kurtosis for record in fingerprint.tensors]
    for word, digests in found["casts"].items():
        assert digests == [record.casts.get(word, b"") for record in fingerprint.tensors]
    sketches = {i: record.sketch for i, record in enumerate(fingerprint.tensors) if record.sketch is not None}
    assert found["sketches"].keys() == sketches.keys()
    assert all(np.array_equal(found["sketches"][i], sketch) for i, sketch in sketches.items())
    samples = [sample for record in fingerprint.tensors for sample in record.axes]
    _, indices, values = found["samples"]
    assert all(np.array_equal(mine.indices, one) for mine, one in zip(samples, indices, strict=True))
    assert all(np.array_equal(mine.values, one) for mine, one in zip(samples, values, strict=True))
    columns, indices, values = found["mlps"]
    shared = [mlp for mlp in fingerprint.neurons if mlp.frame != Frame.SELF]
    assert columns[4].tolist() == [list(mlp.tensors) for mlp in shared]
    for mlp, rows in zip(shared, values, strict=True):
        parts = [part for part in (mlp.gate, mlp.up, mlp.down) if part is not None]
        assert np.array_equal(np.concatenate(parts), rows)
    assert found["claims"] == dict(fingerprint.claims)
    assert found["findings"] == [list(pair) for pair in fingerprint.findings]


def test_time_and_program_do_not_change_the_identity() -> None:
    one = sign(small_model(1), created=GOLDEN_TIME)
    other = replace(sign(small_model(1)), tool="another program 9")
    assert one.identity == other.identity == decode(encode(other)).identity
    assert decode(encode(other)).tool == "another program 9"
    assert sign(small_model(2)).identity != one.identity
    assert encode(one) == encode(sign(small_model(1), created=GOLDEN_TIME))


def test_an_unknown_major_version_is_refused() -> None:
    data = bytearray(GOLDEN.read_bytes())
    struct.pack_into("<H", data, 8, 2)
    with pytest.raises(SignatureVersionError, match=r"golden: version 2 .* newer release"):
        decode(data, path="golden")


def test_a_later_minor_version_with_a_new_section_is_read_and_its_section_kept() -> None:
    signature = replace(golden_signature(), extra=(Section("ODDM", b"later"),))
    data = bytearray(encode(signature))
    struct.pack_into("<H", data, 10, MINOR + 5)
    _fix_checksum(data)
    found = decode(data)
    assert found.extra == (Section("ODDM", b"later"),)
    assert found.fingerprint.claims == signature.fingerprint.claims
    assert found.identity != signature.identity  # it covers the new section
    assert decode(encode(found)).identity == found.identity


def test_an_essential_section_that_is_unknown_is_refused() -> None:
    signature = replace(golden_signature(), extra=(Section("ODDM", b"later", essential=True),))
    with pytest.raises(SignatureVersionError, match="ODDM"):
        decode(encode(signature))


def test_a_word_of_a_later_vocabulary_is_refused_by_name() -> None:
    data = encode(golden_signature())
    with pytest.raises(SignatureVersionError, match="role 'gated'"):
        decode(_with_header(data, b'"gate"', b'"gated"'))


def test_a_signature_of_an_8b_model_has_at_most_4_megabytes() -> None:
    signature = sign(llama_8b())
    assert len(signature.fingerprint.tensors) == 291
    assert not signature.left_out
    assert len(encode(signature)) <= 4_000_000


def test_a_signature_of_a_671b_mixture_has_at_most_24_megabytes_and_all_digests() -> None:
    whole = deepseek_671b()
    assert len(whole.tensors) > 45_000
    assert 660e9 < whole.elements < 690e9
    signature = sign(whole)
    data = encode(signature)
    assert 20_000_000 < len(data) <= 24_000_000
    kept = signature.fingerprint
    pairs = list(zip(kept.tensors, whole.tensors, strict=True))
    assert all(one.digest == other.digest and one.casts == other.casts for one, other in pairs)
    assert all(one.sketch is not None for one, other in pairs if other.sketch is not None and other.expert is None)
    layers = {one.layer for one in kept.tensors if one.expert is not None and one.sketch is not None}
    assert layers == set(range(3, 61))
    lost = sum(one.sketch is None and other.sketch is not None for one, other in pairs)
    assert signature.left_out["sketches"] == lost > 0
    assert signature.left_out["neurons"] == len(whole.neurons) - len(kept.neurons)
    assert decode(data).left_out == signature.left_out


def test_what_is_left_out_does_not_depend_on_the_weights() -> None:
    """A fine-tune of a large model must keep the samples that its base keeps."""
    one, other = (sign(small_model(seed, layers=6), limit=60_000) for seed in (1, 2))
    assert one.left_out == other.left_out
    assert one.left_out
    for left, right in zip(one.fingerprint.tensors, other.fingerprint.tensors, strict=True):
        assert (left.sketch is None, len(left.axes)) == (right.sketch is None, len(right.axes))
    assert len(encode(one)) <= 60_000


def test_a_limit_that_digests_alone_exceed_is_an_error() -> None:
    with pytest.raises(UsageError, match="without any samples"):
        sign(small_model(1), limit=1000)


def test_quantising_is_within_half_a_step_and_stable() -> None:
    from signatures.quantise import quantised, restored

    random = np.random.default_rng(0)
    scales = np.exp(random.uniform(-60, 80, (500, 1)))
    rows = (random.standard_normal((500, 16)) * scales).astype(np.float32)
    rows[0] = 0
    rows[1] = np.float32(np.finfo(np.float32).max)
    scale, values = quantised(rows)
    back = restored(scale, values)
    assert np.all(np.isfinite(back))
    assert np.all(np.abs(back.astype(np.float64) - rows) <= np.max(np.abs(rows), axis=1, keepdims=True) / 254 * 1.00001)
    again = quantised(back)
    assert np.array_equal(again[0], scale)
    assert np.array_equal(again[1], values)
    exact = Fraction(float(scale[7])) * int(values[7, 3])
    assert Fraction(float(back[7, 3])) == exact


def test_halving_is_precise_and_stable() -> None:
    from signatures.quantise import are_halves, halved, unhalved

    random = np.random.default_rng(0)
    rows = (random.standard_normal((500, 16)) * np.exp(random.uniform(-60, 80, (500, 1)))).astype(np.float32)
    rows[0] = 0
    rows[1] = np.float32(np.finfo(np.float32).max)
    rows[2] = 0.5 * (1 + 2.0**-20)  # rounds down to a power of two
    exponents, numbers = halved(rows)
    back = unhalved(exponents, numbers)
    assert are_halves(exponents, numbers)
    assert np.all(np.isfinite(back))
    largest = np.max(np.abs(rows), axis=1, keepdims=True).astype(np.float64)
    wrong = np.abs(back.astype(np.float64) - rows)
    assert np.all(wrong <= np.maximum(np.abs(rows) / 2048.0, largest * 2.0**-24) * 1.001)
    again = halved(back)
    assert np.array_equal(again[0], exponents)
    assert np.array_equal(again[1], numbers)


@pytest.mark.parametrize(
    "change",
    [
        {"digest": b"short"},
        {"shape": (1 << 40, 1 << 40)},
        {"shape": (1,) * 17},
        {"sketch": np.full((4, 4), np.nan, np.float32)},
        {"sketch": np.zeros((3, 4), np.float32)},
        {"layer": 1 << 40},
        {"statistics": TensorStatistics(float("nan"), 1, 1, 1, 0, 0, 0)},
        {"statistics": TensorStatistics(0, 1, 1, 1, 0, 0, 300)},
        {"axes": (AxisSample(Axis.TOKEN, 0, 8, np.array([3, 1]), numbers(1, 2, 4)),)},
    ],
)
def test_what_the_format_cannot_hold_is_an_error_when_it_is_written(change: dict[str, Any]) -> None:
    fingerprint = golden_fingerprint()
    bad = replace(fingerprint, tensors=(replace(fingerprint.tensors[0], **change), *fingerprint.tensors[1:]))
    with pytest.raises(UsageError):
        sign(bad)


def test_sections_that_bear_one_name_or_a_wrong_one_are_not_written() -> None:
    for kinds in (("AAAA", "AAAA"), ("aaaa",), ("TOOLONG",)):
        with pytest.raises(UsageError):
            pack({}, [Section(kind, b"") for kind in kinds], created=0, tool="")


def test_a_signature_of_nothing_but_a_header_is_malformed() -> None:
    data, _ = pack({}, [], created=0, tool="")
    with pytest.raises(MalformedSignatureError):
        decode(data)


def _bare() -> Fingerprint:
    fingerprint = _bare_of(golden_fingerprint())
    return replace(fingerprint, tensors=golden_fingerprint().tensors[3:])


def _uncompressed(data: bytes) -> list[bytes]:
    """Header and contents of the sections, without offsets and what depends on zlib."""
    length, count = struct.unpack_from("<II", data, 12)
    parts = [data[64 : 64 + length]]
    for number in range(count):
        kind, flags, offset, stored, _, _ = struct.unpack_from("<4sIQQQ32s", data, 64 + length + 64 * number)
        content = data[offset : offset + stored]
        parts += [kind, zlib.decompress(content) if flags & 1 else content]
    return parts


def _with_header(data: bytes, old: bytes, new: bytes) -> bytes:
    """The file with a change in its header; offsets and checksum are made to agree."""
    length, count = struct.unpack_from("<II", data, 12)
    text = data[64 : 64 + length].replace(old, new)
    shift = len(text) - length
    changed = bytearray(data[:64] + text + data[64 + length :])
    struct.pack_into("<I", changed, 12, len(text))
    for number in range(count):
        at = 64 + len(text) + 64 * number + 8
        (offset,) = struct.unpack_from("<Q", changed, at)
        struct.pack_into("<Q", changed, at, offset + shift)
    _fix_checksum(changed)
    return bytes(changed)


def _fix_checksum(data: bytearray) -> None:
    length, count = struct.unpack_from("<II", data, 12)
    data[20:24] = bytes(4)
    struct.pack_into("<I", data, 20, zlib.crc32(data[: 64 + length + 64 * count]))
