"""Hostile safetensors files."""

# One case a line, however long it is.
# ruff: noqa: E501

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

from tests.hostile.case import GOOD, Case, Expect, entry, file_case, safetensors

if TYPE_CHECKING:
    from pathlib import Path

MALFORMED, LIMIT, UNSUPPORTED = "MalformedFileError", "LimitExceededError", "UnsupportedFormatError"


def _raw(fields: str) -> bytes:
    return safetensors(b'{"weight":{' + fields.encode() + b"}}", bytes(16))


def _many_tensors() -> bytes:
    text = ",".join(f'"t{number}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for number in range(2**18 + 1))
    return safetensors(b"{" + text.encode() + b"}")


def _plain_names() -> bytes:
    text = ",".join(f'"{number:04000}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for number in range(24_000))
    return safetensors(b"{" + text.encode() + b"}")


def _long_names() -> bytes:
    # A character outside the first plane makes Python store four bytes for each character of the name.
    text = ",".join(
        f'"\U0001f600{number:04000}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for number in range(22_000)
    )
    return safetensors(b"{" + text.encode() + b"}")


def _sparse(size: int, head: bytes) -> Case:
    def build(folder: Path) -> Path:
        path = folder / "model.safetensors"
        with path.open("wb") as file:
            file.write(head)
            file.truncate(size)
        return path

    return Case("header of 150 MB, sparse", build, Expect.ERROR, LIMIT)


def _error(name: str, data: object, detail: str = MALFORMED) -> Case:
    return file_case(f"safetensors: {name}", "model.safetensors", data, Expect.ERROR, detail)  # type: ignore[arg-type]


def _partial(name: str, data: bytes) -> Case:
    return file_case(f"safetensors: {name}", "model.safetensors", data, Expect.PARTIAL, "truncated")


def _finding(name: str, data: bytes, detail: str) -> Case:
    return file_case(f"safetensors: {name}", "model.safetensors", data, Expect.FINDING, detail)


SAFETENSORS_CASES: tuple[Case, ...] = (
    _error("empty file", b""),
    _error("seven bytes", b"1234567"),
    _error("length alone", GOOD[:8]),
    _error("length beyond the file", safetensors({}, length=1000)),
    _error("length of 2**63", safetensors({}, length=2**63), LIMIT),
    _error("length of 2**64 - 1", safetensors({}, length=2**64 - 1), LIMIT),
    _error("length of one byte too few", safetensors({"weight": entry()}, bytes(16), length=10)),
    _sparse(200_000_000, (150_000_000).to_bytes(8, "little") + b"{"),
    _error("no header", safetensors(b"", bytes(16))),
    _error("not JSON", safetensors(b"{weight: 1}")),
    _error("an array", safetensors([entry()], bytes(16))),
    _error("JSON cut off", safetensors(b'{"weight":{"dtype":"F32","sha')),
    _error("JSON twice", safetensors(b"{}{}")),
    _error("NaN in the header", _raw('"dtype":"F32","shape":[NaN],"data_offsets":[0,16]')),
    _error("name that is not UTF-8", safetensors(b'{"\xff\xfe":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', bytes(16))),
    _error("name with half a surrogate", safetensors(b'{"\\ud800":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', bytes(16))),
    _error("raw control character in a name", safetensors(b'{"\x00":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', bytes(16))),
    _error("a name of a megabyte", lambda: safetensors({"w" * 1_000_000: entry()}, bytes(16)), LIMIT),
    _error("a name of 5,000 characters", safetensors({"w" * 5_000: entry()}, bytes(16)), LIMIT),
    _error("a million open brackets", lambda: safetensors(b'{"weight":' + b"[" * 1_000_000), LIMIT),
    _error("a thousand open braces", safetensors(b'{"weight":' + b'{"a":' * 1_000), LIMIT),
    _error("20 MB of empty lists", lambda: safetensors(b'{"weight":[' + b"[]," * 7_000_000 + b"[]]}"), LIMIT),
    _error("a million members in entries", lambda: safetensors(
        b"{" + b",".join(b'"%d":{"x":[%b]}' % (n, b",".join([b"1"] * 1000)) for n in range(1000)) + b"}")),
    _error("a name twice", safetensors(b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', bytes(2))),
    _error("a name twice, once escaped", safetensors(b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\\u0077":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', bytes(2))),
    _error("a key twice in an entry", _raw('"dtype":"F32","dtype":"U8","shape":[4],"data_offsets":[0,16]')),
    _error("metadata twice", safetensors(b'{"__metadata__":{},"__metadata__":{}}')),
    _error("metadata with numbers", safetensors({"__metadata__": {"epoch": 3}, "weight": entry()}, bytes(16))),
    _error("metadata of a million entries", lambda: safetensors({"__metadata__": {str(n): "" for n in range(1_000_000)}}), LIMIT),
    _error("metadata of 8 MB in one string", lambda: safetensors({"__metadata__": {"a": "b" * 8_000_000}}), LIMIT),
    _error("4 MB of escapes in a name", lambda: safetensors(b'{"' + b'\\"' * 2_000_000 + b'":{}}'), LIMIT),
    _error("unknown dtype", safetensors({"weight": entry("F128")}, bytes(16))),
    _error("dtype with a brace", safetensors({"weight": entry("F}32")}, bytes(16))),
    _error("dtype is a number", _raw('"dtype":32,"shape":[4],"data_offsets":[0,16]')),
    _error("no dtype", _raw('"shape":[4],"data_offsets":[0,16]')),
    _error("shape is a string", _raw('"dtype":"F32","shape":"4","data_offsets":[0,16]')),
    _error("negative size", safetensors({"weight": entry(shape=[-4])}, bytes(16))),
    _error("two negative sizes", safetensors({"weight": entry(shape=[-2, -2])}, bytes(16))),
    _error("fractional size", _raw('"dtype":"F32","shape":[4.0],"data_offsets":[0,16]')),
    _error("size with a leading zero", _raw('"dtype":"F32","shape":[04],"data_offsets":[0,16]')),
    _error("size is true", _raw('"dtype":"F32","shape":[true,4],"data_offsets":[0,16]')),
    _error("size of 400 digits", _raw(f'"dtype":"F32","shape":[{"9" * 400}],"data_offsets":[0,16]')),
    _error("sizes whose product overflows to 0", safetensors({"weight": entry(shape=[2**32, 2**32], end=0)}, bytes(16))),
    _error("sizes whose product overflows to 4", safetensors({"weight": entry(shape=[2**62 + 1, 4])}, bytes(16))),
    _error("huge sizes excused by a zero", safetensors({"weight": entry(shape=[0, 2**40, 2**40], end=0)})),
    _error("a thousand axes", safetensors({"weight": entry(shape=[1] * 1_000, end=4)}, bytes(4)), LIMIT),
    _error("offsets run backwards", safetensors({"weight": entry(begin=16, end=0)}, bytes(16))),
    _partial("offsets behind the file", safetensors({"weight": entry(begin=1_000, end=1_016)}, bytes(16))),
    _error("offsets at the end of 64 bits", safetensors({"weight": entry(begin=2**64 - 16, end=2**64)}, bytes(16)), LIMIT),
    _error("negative offsets", safetensors({"weight": entry(begin=-16, end=0)}, bytes(16))),
    _error("three offsets", _raw('"dtype":"F32","shape":[4],"data_offsets":[0,8,16]')),
    _error("no offsets", _raw('"dtype":"F32","shape":[4]')),
    _error("offsets of another size", safetensors({"weight": entry(end=12)}, bytes(16))),
    _error("overlap by one byte", safetensors({"a": entry(), "b": entry(begin=15, end=31)}, bytes(31))),
    _error("two tensors in one place", safetensors({"a": entry(), "b": entry()}, bytes(16))),
    _error("one tensor inside another", safetensors({"a": entry(), "b": entry("U8", [1], 4, 5)}, bytes(16))),
    _error("half a byte", safetensors({"weight": entry("F4", [3], 0, 1)}, bytes(2))),
    _partial("data cut off", GOOD[:-1]),
    _partial("the second tensor cut off", safetensors({"a": entry(), "b": entry(begin=16, end=32)}, bytes(31))),
    _partial("cut off behind the header", GOOD[:-16]),
    _error("2**18 + 1 tensors", _many_tensors, LIMIT),
    _error("90 MB of names", _long_names, LIMIT),
    _error("97 MB of plain names", _plain_names, LIMIT),
    _error("a ZIP archive's first bytes", b"PK\x03\x04" + bytes(100)),
    file_case("safetensors: compressed", "model.safetensors", gzip.compress(GOOD), Expect.FINE),
    _error("a page of HTML", b"<!DOCTYPE html><html><body>Access to this model is restricted</body></html>"),
    _error("a pointer of Git LFS", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 548\n", UNSUPPORTED),
    _finding("bytes of no tensor in between", safetensors({"a": entry(), "b": entry(begin=20, end=36)}, bytes(36)), "unused-bytes"),
    _finding("bytes after the last tensor", GOOD + b"more", "trailing-bytes"),
    _finding("a ZIP archive behind the tensors", GOOD + b"PK\x05\x06" + bytes(18), "trailing-bytes"),
    _finding("no tensors", safetensors({}), "no-tensors"),
    _finding("a thousand entries of metadata", safetensors({"__metadata__": {str(n): "x" for n in range(1_000)}, "weight": entry()}, bytes(16)), "metadata-clipped"),
    _finding("a megabyte of white space", safetensors(b"{" + b" " * 1_000_000 + b"}"), "no-tensors"),
    file_case("safetensors: escape sequences in a name", "model.safetensors", safetensors({"\x1b[2J\x1b]0;title\x07": entry()}, bytes(16)), Expect.FINE),
    file_case("safetensors: names that are paths", "model.safetensors", safetensors({"../../etc/passwd": entry()}, bytes(16)), Expect.FINE),
    file_case("unknown bytes", "model.xyz", b"what is this", Expect.ERROR, UNSUPPORTED),
)  # fmt: skip
"""Every way to lie in a header that is known, and the few that are harmless."""
