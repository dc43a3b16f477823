"""Hostile files of numpy: headers that lie, and archives of them."""

# One case a line, however long it is.
# ruff: noqa: E501

from __future__ import annotations

import io
import struct
import zipfile

from tests.hostile.case import Case, Expect, file_case

MALFORMED, LIMIT, UNSUPPORTED = "MalformedFileError", "LimitExceededError", "UnsupportedFormatError"


def npy(header: str, data: bytes = bytes(16), *, version: int = 1, length: int | None = None) -> bytes:
    """A file with that header, which claims to have ``length`` bytes."""
    size = len(header.encode()) if length is None else length
    return (
        b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", size) + header.encode() + data
    )


def fields(descr: str = "'<f4'", order: str = "False", shape: str = "(2, 2)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


def npz(*entries: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, data in entries:
            file.writestr(name, data)
    return buffer.getvalue()


GOOD = npy(fields())
_PAIR = npz(("a.npy", GOOD), ("b.npy", GOOD))


def _error(title: str, data: bytes, detail: str = MALFORMED) -> Case:
    return file_case(f"npy: {title}", "model.npy", data, Expect.ERROR, detail)


def _archive(title: str, data: bytes, expect: Expect = Expect.ERROR, detail: str = MALFORMED) -> Case:
    return file_case(f"npz: {title}", "model.npz", data, expect, detail)


NUMPY_CASES: tuple[Case, ...] = (
    _error("magic alone", GOOD[:6]),
    _error("cut off in the header", GOOD[:30]),
    _error("version 9", npy(fields(), version=9)),
    _error("header of 60,000 bytes", npy(fields() + " " * 60_000), LIMIT),
    _error("header of 4 GB", npy(fields(), version=2, length=2**32 - 1), LIMIT),
    _error("header beyond the file", npy(fields(), length=5_000)),
    _error("no header", npy("")),
    _error("header that is code", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (__import__('os').system('true'),)}")),
    _error("header of open brackets", npy("(" * 9_000)),
    _error("shape of open brackets", npy(fields(shape="(" * 9_000))),
    _error("shape of strings", npy(fields(shape="('2',)"))),
    _error("negative size", npy(fields(shape="(-2, 2)"))),
    _error("size of 400 digits", npy(fields(shape=f"({'9' * 400},)"))),
    _error("sizes that overflow", npy(fields(shape="(4294967296, 4294967296)"))),
    _error("huge sizes excused by a zero", npy(fields(shape="(0, 4294967296, 4294967296)"))),
    _error("a thousand axes", npy(fields(shape=f"({'1, ' * 1_000})"))),
    _error("thirty axes", npy(fields(shape=f"({'1, ' * 30})"), bytes(4)), LIMIT),
    _error("an array of objects", npy(fields("'|O'"), b"\x80\x03cos\nsystem\n."), UNSUPPORTED),
    _error("structures", npy(fields("[('a', '<f4')]")), UNSUPPORTED),
    _error("strings", npy(fields("'<U4'")), UNSUPPORTED),
    _error("complex128", npy(fields("'<c16'")), UNSUPPORTED),
    _error("unknown type", npy(fields("'<f99'")), UNSUPPORTED),
    _error("a thousand structures", npy(fields("[" + "('a', '<f4'), " * 500 + "]")), UNSUPPORTED),
    file_case("npy: cut off", "model.npy", GOOD[:-1], Expect.PARTIAL, "truncated"),
    file_case("npy: claims 2**50 bytes", "model.npy", npy(fields(shape="(1125899906842624,)")), Expect.PARTIAL, "truncated"),
    file_case("npy: bytes behind the array", "model.npy", GOOD + b"more", Expect.FINDING, "trailing-bytes"),
    file_case("npy: two bytes without a type", "model.npy", npy(fields("'<V2'", shape="(8,)")), Expect.FINDING, "bfloat16-assumed"),
    _archive("entry that is no array", npz(("a.npy", GOOD), ("b.npy", b"no array"))),
    _archive("entry longer than its array", npz(("a.npy", GOOD + b"more"))),
    _archive("entry shorter than its array", npz(("a.npy", GOOD[:-4]))),
    _archive("entry that unpacks to 200 MB", npz(("a.npy", npy(fields(shape="(50000000,)"), bytes(200_000_000))), method=zipfile.ZIP_DEFLATED), detail=LIMIT),
    _archive("one array is of objects", npz(("a.npy", GOOD), ("b.npy", npy(fields("'|O'"), b"\x80\x03cos\nsystem\n."))), Expect.PARTIAL, "unread-tensor"),
    _archive("one array is of structures", npz(("a.npy", GOOD), ("b.npy", npy(fields("[('a', '<f4')]")))), Expect.PARTIAL, "unread-tensor"),
    _archive("one array is of strings", npz(("a.npy", GOOD), ("b.npy", npy(fields("'<U4'")))), Expect.FINE, ""),
    _archive("names that are paths", npz(("../../etc/a.npy", GOOD)), Expect.FINE, ""),
    _archive("cut off", _PAIR[:-60], Expect.PARTIAL, "truncated"),
    _archive("cut off in the second array", _PAIR[: _PAIR.rindex(GOOD) + 100], Expect.PARTIAL, "truncated"),
    _archive("cut off in the first array", _PAIR[:60], Expect.PARTIAL, "truncated"),
)  # fmt: skip
"""Headers are text that looks like Python, which must not be evaluated; arrays of objects are pickles."""
