"""Plain pickles of numpy arrays, as detectron2 and many older programs keep their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from fingerprint.errors import MalformedFileError, clipped
from fingerprint.readers.base import About, Catalogue, Contents, Finding, Reader
from fingerprint.readers.pickles import read_pickle_at
from fingerprint.readers.torch_views import Storages, assembled, described

if TYPE_CHECKING:
    from fingerprint.source import Source


def recognises(source: Source) -> bool:
    """True for the opcode that begins pickles of protocol 2 to 5."""
    head = bytes(source.read(0, min(2, source.size)))
    return len(head) == 2 and head[0] == 0x80 and 2 <= head[1] <= 5


def open_pickle(source: Source, catalogue: Catalogue | None = None) -> Contents:
    """The numpy arrays of a pickle, under their keys joined with dots. Raises ``InputError``."""
    catalogue = Catalogue(source.path) if catalogue is None else catalogue
    pickle = read_pickle_at(source)
    found, findings = described(pickle, pickle.end, catalogue)
    if pickle.end < source.size:
        text = f"{source.size - pickle.end} bytes follow the end of the pickle"
        findings.append(Finding("trailing-bytes", text))

    def locate(key: str) -> NoReturn:
        raise MalformedFileError(f"the storage {clipped(key)!r} is outside the pickle", path=source.path)

    return assembled(found, Storages(source.path, locate), catalogue, source.size, findings)


_ABOUT = (
    About(
        "pickle (plain, of numpy arrays)",
        "the first opcode of protocol 2 to 5",
        "dicts and lists of arrays in row-major or column-major order, also bfloat16 and float8 of ml_dtypes",
        "structured arrays, complex128",
    ),
)
READER = Reader("pickle", (".pkl", ".pickle"), recognises, open_pickle, _ABOUT)
