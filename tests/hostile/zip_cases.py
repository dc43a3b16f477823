"""Hostile ZIP archives around good PyTorch pickles."""

# One case a line, however long it is.
# ruff: noqa: E501

from __future__ import annotations

import struct
import zipfile
from typing import TYPE_CHECKING

from tests.hostile.archives import STORAGE, TENSOR, archive, central, integer, patched, state_dict, storage, tensor
from tests.hostile.case import Case, Expect, file_case

if TYPE_CHECKING:
    from collections.abc import Callable

MALFORMED, LIMIT, UNSUPPORTED = "MalformedFileError", "LimitExceededError", "UnsupportedFormatError"
GOOD = archive()
_END = GOOD.rindex(b"PK\x05\x06")
_PICKLE, _DATA = "archive/data.pkl", "archive/data/0"


def _error(title: str, data: bytes | Callable[[], bytes], detail: str = MALFORMED, file_name: str = "model.pt") -> Case:
    return file_case(f"zip: {title}", file_name, data, Expect.ERROR, detail)


def _partial(title: str, data: bytes) -> Case:
    return file_case(f"zip: {title}", "model.pt", data, Expect.PARTIAL, "truncated")


def _finding(title: str, data: bytes, detail: str) -> Case:
    return file_case(f"zip: {title}", "model.pt", data, Expect.FINDING, detail)


def _central(entry: str, offset: int, layout: str, *values: int, data: bytes = GOOD) -> bytes:
    return patched(data, central(data, entry) + offset, layout, *values)


def _deflated_pickle() -> bytes:
    return archive(bytes(200_000_000), method=zipfile.ZIP_DEFLATED)


def _deflated_storage() -> bytes:
    pickle = state_dict(("weight", tensor(store=storage(count=integer(4)))))
    data = archive(pickle, method=zipfile.ZIP_DEFLATED)
    small = struct.unpack_from("<I", data, central(data, _DATA) + 20)[0]
    return _central(_DATA, 20, "<II", small, small * 2_000, data=data)


def _crowd() -> bytes:
    return archive(entries={f"archive/x{number}": b"" for number in range(2**17)})


def _zip64(size: int, offset: int, count: int = 2) -> bytes:
    """The good archive with a ZIP64 end that claims this."""
    start = struct.unpack_from("<I", GOOD, _END + 16)[0]
    record = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, offset or start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, _END, 1)
    return GOOD[:_END] + record + locator + GOOD[_END:]


def _decoy() -> bytes:
    """Two ends of one archive, one inside the comment of the other."""
    comment = GOOD[_END:]
    return patched(GOOD, _END + 20, "<H", len(comment)) + comment


def _described() -> bytes:
    """An archive without its end whose first entry is said to be described behind itself, and never is."""
    return (
        struct.pack("<4s5HIII2H", b"PK\x03\x04", 0, 8, 0, 0, 0, 0, 0, 0, 12, 0)
        + b"a/b/data.pkl"
        + b"PK\x07\x08" * 1_000_000
    )


def _renamed() -> bytes:
    at = GOOD.index(_PICKLE.encode())
    return GOOD[:at] + b"archive/data.txt" + GOOD[at + len(_PICKLE) :]


def _lower(old: str, new: str) -> bytes:
    return GOOD.replace(old.encode(), new.encode())


ZIP_CASES: tuple[Case, ...] = (
    _partial("cut off", GOOD[:-30]),
    _partial("cut off in the middle", GOOD[: GOOD.index(STORAGE) + 7]),
    _error("cut off in the pickle", GOOD[:100]),
    _error("a million false descriptions of an entry", _described),
    _error("the first four bytes", GOOD[:4] + bytes(100)),
    _error("no pickle", archive(entries={}).replace(b"data.pkl", b"data.txt")),
    _error("no pickle, and no usual suffix", archive(entries={}).replace(b"data.pkl", b"data.txt"), MALFORMED, "model.zip"),
    _error("pickle elsewhere than the first entry", archive(prefix="b").replace(b"b/data/0", b"a/data/0")),
    _error("two pickles of one name", archive(entries={_PICKLE: state_dict(("other", TENSOR))})),
    _error("two pickles, one in capitals", archive(entries={"archive/DATA.PKL": state_dict(("other", TENSOR))})),
    _error("two storages of one name", archive(entries={_DATA: STORAGE})),
    _error("two entries in one place", _central(_DATA, 42, "<I", 0)),
    _error("entries that overlap", _central(_PICKLE, 20, "<II", 400, 400)),
    _error("entry behind the archive", _central(_DATA, 42, "<I", 2**31)),
    _error("entry that reaches into the directory", _central(_DATA, 20, "<II", 4_000, 4_000)),
    _error("stored in two sizes", _central(_DATA, 20, "<II", 16, 2**31)),
    _error("entry without a header of its own", patched(GOOD, struct.unpack_from("<I", GOOD, central(GOOD, _DATA) + 42)[0], "<I", 0)),
    _error("unknown compression", _central(_DATA, 10, "<H", 14), UNSUPPORTED),
    _error("stored entry that says deflated", _central(_PICKLE, 10, "<H", 8)),
    _error("pickle that unpacks to 200 MB", _deflated_pickle, LIMIT),
    _error("storage that unpacks to 2,000 times its size", _deflated_storage),
    _error("2**17 entries", _crowd, LIMIT),
    _error("65,535 entries claimed", patched(GOOD, _END + 8, "<HH", 65_535, 65_535)),
    _error("directory of 4 GB", patched(GOOD, _END + 12, "<I", 2**32 - 1), LIMIT),
    _error("directory behind the file", patched(GOOD, _END + 16, "<I", 2**31)),
    _error("directory elsewhere", patched(GOOD, _END + 16, "<I", 5)),
    _error("several volumes", patched(GOOD, _END + 4, "<HH", 1, 1)),
    _error("ZIP64 end of 2**60 bytes", _zip64(2**60, 0), LIMIT),
    _error("ZIP64 end at 2**60", _zip64(100, 2**60)),
    _error("ZIP64 end of 2**40 entries", _zip64(100, 0, 2**40), LIMIT),
    _error("ZIP64 end that is not there", patched(_zip64(100, 0), _END, "<I", 0)),
    _partial("an end inside a comment", _decoy() + b"x" * 70_000),
    _error("unknown byte order", archive(entries={"archive/byteorder": b"middle"})),
    _error("byte order of a megabyte", lambda: archive(entries={"archive/byteorder": b"b" * 1_000_000}), LIMIT),
    _error("no storage", archive(storages=False)),
    _error("an end of 13 bytes in a file of 16", b"P\x00\x00PK\x05\x06\x00\x00\x00\x00#\x00\x00\x00\x00"),
    _finding("another name in the local header", _renamed(), "zip-names"),
    _finding("marked as encrypted", _central(_PICKLE, 8, "<H", 1), "zip-encrypted"),
    _finding("wrong checksum of the pickle", _central(_PICKLE, 16, "<I", 1), "crc-mismatch"),
    _finding("a second pickle", archive(entries={"archive/evil.pkl": b"cos\nsystem\n."}), "other-pickles"),
    file_case("zip: names that are paths", "model.pt", archive(entries={"../../../tmp/evil": b"x", "/etc/evil": b"x"}), Expect.FINE),
    file_case("zip: wrong checksum of a storage", "model.pt", _central(_DATA, 16, "<I", 1), Expect.FINE),
    file_case("zip: capitals", "model.pt", _lower("archive/data.pkl", "archive/Data.PKL"), Expect.FINE),
    file_case("zip: decoy end in the comment", "model.pt", _decoy(), Expect.FINE),
)  # fmt: skip
"""Archives that lie about their entries, or that readers of different kinds understand differently."""
