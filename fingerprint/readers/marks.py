"""Names of files that say what a folder is: known before the reader of such folders is imported, as few scans need."""

from __future__ import annotations

from typing import Final

DISTRIBUTED: Final = ".metadata"
"""PyTorch's distributed checkpoints."""
ORBAX: Final = "_METADATA"
OCDBT: Final = "manifest.ocdbt"
T5X: Final = "checkpoint"
ZARR_2: Final = ".zarray"
ZARR_3: Final = "zarr.json"
ZARR: Final = (".zgroup", ".zmetadata", ZARR_2, ZARR_3)
"""Files that a folder of zarr has."""
FOLDERS: Final = frozenset({DISTRIBUTED, ORBAX, OCDBT, T5X, *ZARR})
"""All of them."""
