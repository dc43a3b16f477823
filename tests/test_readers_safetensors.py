"""safetensors headers: what the library writes, and agreement with it on what it accepts."""

from __future__ import annotations

import itertools
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fingerprint.checkpoint import open_checkpoint
from fingerprint.dtypes import DTYPES
from fingerprint.errors import InputError, MalformedFileError
from fingerprint.readers.bounded_json import JsonCursor
from tests.hostile.case import GOOD, entry
from tests.hostile.case import safetensors as made

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "model.safetensors"


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(lambda name: name != "__metadata__")
SPECS = st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=4))


@settings(max_examples=200, deadline=None)
@example(specs={"W_q": ("U8", [2])}, seed=0, metadata=None)
@given(
    specs=st.dictionaries(NAMES, SPECS, max_size=6),
    seed=st.integers(0, 2**32 - 1),
    metadata=st.none() | st.dictionaries(NAMES, NAMES, max_size=3),
)
def test_files_of_the_library_are_read_as_written(
    scratch: Path, specs: dict[str, tuple[str, list[int]]], seed: int, metadata: dict[str, str] | None
) -> None:
    random = np.random.default_rng(seed)
    stored: dict[str, dict[str, Any]] = {}
    for name, (dtype, shape) in specs.items():
        # The last axis holds whole bytes of any type.
        sizes = [*shape, 4]
        length = DTYPES[dtype].nbytes(math.prod(sizes))
        stored[name] = {"dtype": dtype, "shape": sizes, "data": random.bytes(length or 0)}
    scratch.write_bytes(_serialised(stored, metadata))
    with open_checkpoint(scratch) as checkpoint:
        assert checkpoint.complete
        # A name may look like that of a quantised matrix whose scales are absent, which is then read as it is stored.
        assert {finding.code for finding in checkpoint.findings} <= {"no-tensors", "quantised-layout"}
        assert dict(checkpoint.metadata) == (metadata or {})
        assert {tensor.name for tensor in checkpoint.tensors} == set(stored)
        for tensor in checkpoint.tensors:
            wanted = stored[tensor.name]
            assert (tensor.dtype.name, list(tensor.shape)) == (wanted["dtype"], wanted["shape"])
            array = tensor.read(0, math.prod(tensor.shape))
            if tensor.dtype.bits >= 8 and tensor.dtype.name != "BOOL":
                assert array.tobytes() == wanted["data"]


def _serialised(stored: dict[str, dict[str, Any]], metadata: dict[str, str] | None) -> bytes:
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, tensor in stored.items():
        offsets = [len(data), len(data) + len(tensor["data"])]
        header[name] = {"dtype": tensor["dtype"], "shape": tensor["shape"], "data_offsets": offsets}
        data += tensor["data"]
    file = made(header, data)
    safetensors.deserialize(file)  # raises unless the library takes it
    return file


HEADER = json.dumps({"__metadata__": {"a": "b"}, "x": entry("F32", [2, 2], 0, 16), "y": entry("U8", [3], 16, 19)})
DATA = bytes(range(19))


@settings(max_examples=500, deadline=None)
@given(place=st.integers(0, len(HEADER) - 1), text=st.sampled_from(list('0123456789"{}[],: \\-.eEaFU\t')))
@example(place=0, text="{")
def test_what_the_library_accepts_is_read_alike(scratch: Path, place: int, text: str) -> None:
    """One character of the header changed: accepted by the library means accepted here, with equal bytes."""
    file = made((HEADER[:place] + text + HEADER[place + 1 :]).encode(), DATA)
    scratch.write_bytes(file)
    try:
        wanted = dict(safetensors.deserialize(file))
    except safetensors.SafetensorError:
        wanted = None
    try:
        with open_checkpoint(scratch) as checkpoint:
            found = {tensor.name: (tensor.dtype.name, list(tensor.shape)) for tensor in checkpoint.tensors}
            codes = {finding.code for finding in checkpoint.findings}
    except InputError:
        found, codes = None, set()
    if wanted is not None:
        assert found == {name: (tensor["dtype"], tensor["shape"]) for name, tensor in wanted.items()}
    elif found is not None:
        # More than the library takes is read only where bytes of no tensor, or tensors behind the end, are reported.
        assert codes & {"unused-bytes", "trailing-bytes", "truncated"}


@pytest.mark.parametrize("order", list(itertools.permutations(["dtype", "shape", "data_offsets"])))
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" ,\n", "\t:\r\n ")])
def test_order_of_keys_and_white_space_do_not_matter(
    scratch: Path, order: tuple[str, ...], separators: tuple[str, str]
) -> None:
    fields = entry()
    text = json.dumps({"weight": {key: fields[key] for key in order}}, separators=separators)
    scratch.write_bytes(made(text.encode(), GOOD[-16:]))
    with open_checkpoint(scratch) as checkpoint:
        [tensor] = checkpoint.tensors
        assert (tensor.name, tensor.shape, tensor.dtype.name) == ("weight", (2, 2), "F32")
        assert tensor.read(0, 4).tobytes() == GOOD[-16:]


def test_further_keys_of_an_entry_are_passed_over(scratch: Path) -> None:
    scratch.write_bytes(made({"weight": {**entry(), "note": ["any", {"thing": 1.5e3}, None, True]}}, bytes(16)))
    with open_checkpoint(scratch) as checkpoint:
        assert [tensor.shape for tensor in checkpoint.tensors] == [(2, 2)]


def test_padded_header_is_read(scratch: Path) -> None:
    """The library pads headers with spaces to a multiple of eight bytes."""
    scratch.write_bytes(made(json.dumps({"weight": entry()}).encode() + b"       ", bytes(16)))
    with open_checkpoint(scratch) as checkpoint:
        assert checkpoint.findings == ()


def test_tensors_keep_the_order_of_the_header(scratch: Path) -> None:
    scratch.write_bytes(made({"z": entry(begin=16, end=32), "a": entry()}, bytes(32)))
    with open_checkpoint(scratch) as checkpoint:
        assert [tensor.name for tensor in checkpoint.tensors] == ["z", "a"]


@pytest.mark.parametrize(("bits", "dtype", "count"), [(4, "F4", 1002), (6, "F6_E2M3", 1004), (6, "F6_E3M2", 1004)])
def test_ranges_of_packed_elements_start_anywhere(scratch: Path, bits: int, dtype: str, count: int) -> None:
    raw = np.random.default_rng(bits).bytes(count * bits // 8)
    scratch.write_bytes(made({"a": entry("U8", [3], 0, 3), "w": entry(dtype, [count], 3, 3 + len(raw))}, b"abc" + raw))
    with open_checkpoint(scratch) as checkpoint:
        tensor = checkpoint.tensors[1]
        whole = tensor.read(0, count).tobytes()
        for start in range(9):
            for stop in (start, start + 1, start + 5, count - start, count):
                assert tensor.read(start, stop).tobytes() == whole[start:stop]


def test_error_names_file_tensor_and_offset(scratch: Path) -> None:
    scratch.write_bytes(made({"fine": entry(), "bad": entry("F99", begin=16, end=32)}, bytes(32)))
    with pytest.raises(MalformedFileError, match=r"model\.safetensors, tensor 'bad', offset \d+: .*F99"):
        open_checkpoint(scratch)


def test_long_names_are_clipped_in_messages(scratch: Path) -> None:
    scratch.write_bytes(made({"n" * 4000: entry("F99")}, bytes(16)))
    with pytest.raises(MalformedFileError) as caught:
        open_checkpoint(scratch)
    assert len(str(caught.value)) < 500


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(
    value=JSON, options=st.fixed_dictionaries({"ensure_ascii": st.booleans(), "indent": st.none() | st.integers(0, 3)})
)
def test_json_is_read_as_python_reads_it(value: object, options: dict[str, Any]) -> None:
    text = json.dumps(value, **options).encode()
    cursor = JsonCursor(text, path="x", what="test")
    assert cursor.value() == value
    cursor.end()
