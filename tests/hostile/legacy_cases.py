"""Hostile PyTorch files of the form from before 1.6, and plain pickles."""

# One case a line, however long it is.
# ruff: noqa: E501

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tests.hostile.archives import STORAGE, TENSOR, call, integer, name, state_dict, storage, tensor, text, tuple_of
from tests.hostile.case import CANARY, Case, Expect, file_case

if TYPE_CHECKING:
    from pathlib import Path

MALFORMED, LIMIT, UNSUPPORTED = "MalformedFileError", "LimitExceededError", "UnsupportedFormatError"
MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
PROTOCOL = b"\x80\x02M\xe9\x03."
MACHINE = b"\x80\x02}(" + text("protocol_version") + b"M\xe9\x03" + text("little_endian") + b"\x88u."
KEYS = b"\x80\x02](" + text("0") + b"e."


def legacy(pickle: bytes = b"", keys: bytes = KEYS, storages: bytes | None = None, machine: bytes = MACHINE) -> bytes:
    """A file of one storage of four numbers, each part of which may be another."""
    body = struct.pack("<q", 4) + STORAGE if storages is None else storages
    return MAGIC + PROTOCOL + machine + (pickle or state_dict(("weight", TENSOR))) + keys + body


GOOD = legacy()


def _error(title: str, data: bytes, detail: str = MALFORMED) -> Case:
    return file_case(f"legacy: {title}", "model.pt", data, Expect.ERROR, detail)


def _partial(title: str, data: bytes, detail: str = "truncated") -> Case:
    return file_case(f"legacy: {title}", "model.pt", data, Expect.PARTIAL, detail)


def _live(title: str, where: str) -> Case:
    """``os.system`` in one of the pickles."""

    def build(folder: Path) -> Path:
        evil = call("os", "system", text(f"touch '{folder / CANARY}'"))
        parts = {
            "machine": legacy(machine=b"\x80\x02" + evil + b"0}" + b"."),
            "pickle": legacy(state_dict(("evil", evil), ("weight", TENSOR))),
            "keys": legacy(keys=b"\x80\x02" + evil + b"0](" + text("0") + b"e."),
        }
        (folder / "model.pt").write_bytes(parts[where])
        return folder / "model.pt"

    return Case(f"legacy: {title}", build, Expect.FINDING, "unknown-global")


def _array(shape: bytes, data: bytes, dtype: str = "f4") -> bytes:
    """A pickle of one numpy array."""
    kind = call("numpy", "dtype", text(dtype), b"\x89", b"\x88") + tuple_of(b"K\x03", text("<"), *[b"N"] * 3) + b"b"
    empty = call("numpy.core.multiarray", "_reconstruct", name("numpy", "ndarray"), tuple_of(b"K\x00"), b"C\x01b")
    return state_dict(("w", empty + tuple_of(b"K\x01", shape, kind, b"\x89", data) + b"b"))


def _plain(title: str, data: bytes, expect: Expect = Expect.ERROR, detail: str = MALFORMED) -> Case:
    return file_case(f"plain pickle: {title}", "model.pkl", data, expect, detail)


def _raw(data: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(data)) + data


_TWO = legacy(
    state_dict(("a", TENSOR), ("b", tensor(store=storage(text("1"))))),
    b"\x80\x02](" + text("0") + text("1") + b"e.",
    (struct.pack("<q", 4) + STORAGE) * 2,
)

LEGACY_CASES: tuple[Case, ...] = (
    _live("call in the description of the machine", "machine"),
    _live("call in the pickle", "pickle"),
    _live("call in the list of keys", "keys"),
    _error("magic number alone", MAGIC),
    _error("another protocol", MAGIC + b"\x80\x02M\xea\x03." + GOOD[len(MAGIC + PROTOCOL) :], UNSUPPORTED),
    _error("cut off in the pickle", GOOD[:120]),
    _error("cut off in the keys", GOOD[: -len(STORAGE) - 10]),
    _error("keys that are no list", legacy(keys=b"\x80\x02}.")),
    _error("keys that are lists", legacy(keys=b"\x80\x02](]e.")),
    _error("a key twice", legacy(keys=b"\x80\x02](" + text("0") + text("0") + b"e.")),
    _error("a key that the pickle does not name", legacy(keys=b"\x80\x02](" + text("7") + b"e.")),
    _error("no keys", legacy(keys=b"\x80\x02].")),
    _error("a storage of another length", legacy(storages=struct.pack("<q", 5) + STORAGE)),
    _error("a storage of 2**62", legacy(state_dict(("weight", tensor(store=storage(count=integer(2**62))))))),
    _error("a storage of a negative length", legacy(storages=struct.pack("<q", -4) + STORAGE)),
    _error("a storage of an unknown kind", legacy(state_dict(("weight", tensor(store=storage(kind=name("torch", "EvilStorage"))))))),
    _error("shape larger than the storage", legacy(state_dict(("weight", tensor(offset=integer(1)))))),
    _error("two million opcodes", legacy(b"\x80\x02" + b"N0" * 2_000_000 + b"N."), LIMIT),
    _partial("cut off in the storage", GOOD[:-1]),
    _partial("cut off in the length of the storage", GOOD[: -len(STORAGE) - 3]),
    _partial("cut off before the keys", GOOD[: -len(STORAGE) - 8 - len(KEYS)]),
    _partial("cut off in the second storage", _TWO[:-5]),
    file_case("legacy: bytes behind the last storage", "model.pt", GOOD + b"more", Expect.FINDING, "trailing-bytes"),
    _plain("array that has fewer bytes than it says", _array(tuple_of(b"K\x08"), _raw(bytes(16)))),
    _plain("array of 2**60", _array(tuple_of(integer(2**60)), _raw(bytes(16)))),
    _plain("array of a negative size", _array(tuple_of(b"J\xff\xff\xff\xff"), _raw(bytes(16))), Expect.PARTIAL, "unread-tensor"),
    _plain("array whose shape is text", _array(text("4"), _raw(bytes(16))), Expect.PARTIAL, "unread-tensor"),
    _plain("array of a type of 10,000 letters", _array(tuple_of(b"K\x04"), _raw(bytes(16)), "f" * 10_000), Expect.PARTIAL, "unread-tensor"),
    _plain("array of objects that hold themselves", state_dict(("w", b"]q\x05h\x05a")), Expect.FINDING, "no-tensors"),
    _plain("a tensor of torch without its storage", state_dict(("w", TENSOR))),
    _plain("text of 4 GB", b"\x80\x02X\xff\xff\xff\xffabc."),
    _plain("a key of 100,000 letters", state_dict(("k" * 100_000, b"N")), Expect.FINDING, "no-tensors"),
    _plain("a key of 100,000 letters over an array", state_dict(("k" * 100_000, _array(tuple_of(b"K\x04"), _raw(bytes(16)))[2:-1])), detail=LIMIT),
    _plain("bytes behind the pickle", state_dict(("w", b"N")) + b"more", Expect.FINDING, "trailing-bytes"),
)  # fmt: skip
"""Five pickles in a row, each of which could run something; lengths that are said twice and may differ."""
