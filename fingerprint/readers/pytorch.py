"""PyTorch's files, whichever of its writers made them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fingerprint.errors import MalformedFileError
from fingerprint.readers import torch_legacy, torch_zip
from fingerprint.readers.base import About, Catalogue, Contents, Reader
from fingerprint.readers.zips import is_zip

if TYPE_CHECKING:
    from fingerprint.source import Source


def recognises(source: Source) -> bool:
    """True for an archive with a ``data.pkl``, and for the magic number of older files."""
    return torch_zip.recognises(source) or torch_legacy.is_legacy(source)


def open_pytorch(source: Source, catalogue: Catalogue | None = None) -> Contents:
    """The tensors of a PyTorch file, under the names of its state dict. Raises ``InputError``."""
    catalogue = Catalogue(source.path) if catalogue is None else catalogue
    if is_zip(source):
        return torch_zip.open_torch_zip(source, catalogue)
    if torch_legacy.is_legacy(source):
        return torch_legacy.open_legacy(source, catalogue)
    hint = "neither a ZIP archive nor the magic number of files from before 1.6"
    raise MalformedFileError("not a file of PyTorch", path=source.path, hint=hint)


_ABOUT = (
    About(
        "PyTorch (`torch.save` since 1.6, also TorchScript)",
        "a ZIP archive that begins with an entry and has a `data.pkl`",
        "strided, tied and subclassed tensors, float8, whole pickled modules, numpy arrays",
        "sparse, quantised, complex128, or lazily conjugated tensors",
    ),
    About(
        "PyTorch before 1.6",
        "the magic number in the first pickle",
        "the same",
        "the same",
    ),
)
READER = Reader("pytorch", (".pt", ".pth", ".bin", ".ckpt"), recognises, open_pytorch, _ABOUT)
