"""Orbax checkpoints: a tree of parameters, an array of zarr each, in folders or in a database (OCDBT).

Layout as orbax-checkpoint 0.12 writes it: ``_METADATA`` lists the leaves of the tree; a step of its manager holds
items such as ``default``, and ``_CHECKPOINT_METADATA``. Weights are laid out as in PyTorch (see ``flax_layout``).
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from fingerprint.errors import InputError, LimitExceededError
from fingerprint.readers.base import About, Catalogue, Contents, FileRecord, Finding, bounded, some
from fingerprint.readers.bounded_json import Json, JsonCursor
from fingerprint.readers.flax_layout import as_in_torch
from fingerprint.readers.marks import OCDBT, ORBAX, T5X, ZARR_2, ZARR_3
from fingerprint.readers.ocdbt import Database
from fingerprint.readers.opened import Opened
from fingerprint.readers.torch_views import wrapper
from fingerprint.readers.zarr import Arrays, array_keys, named
from fingerprint.tensors import renamed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fingerprint.readers.places import Folder
    from fingerprint.tensors import TensorView

FORMAT: Final = "orbax"
STEP: Final = "_CHECKPOINT_METADATA"
"""What T5X puts beside its folders of arrays, as Orbax did at first."""
MAX_METADATA: Final = 64 << 20
"""Most bytes of ``_METADATA``."""
MAX_STEPS: Final = 1024
_ARRAYS: Final = ("jax.Array", "np.ndarray")
_PARTS: Final = ("mu", "nu", "count")
ABOUT: Final = About(
    "Orbax",
    "a folder with `_METADATA` or `manifest.ocdbt`, or a step of its manager",
    "arrays of zarr in folders (T5X's too) or in one OCDBT database, whose newest version counts. "
    "Moments of Adam and the counts of steps are set aside. Weights are laid out as PyTorch stores them: see "
    "[below](#laid-out-as-in-pytorch)",
    "numbered manifests of OCDBT; trees without `_METADATA` in an archive",
    "zstd",
)


def is_orbax(place: Folder, names: list[str]) -> bool:
    """True for a folder that holds the arrays of a tree. Raises ``InputError``."""
    if ORBAX in names or OCDBT in names:
        return True
    if T5X not in names or place.distant:
        return False
    return any(ZARR_2 in place.sub(name).file_names() for name in place.folder_names()[:MAX_STEPS])


def items(place: Folder, names: list[str]) -> dict[str, Folder]:
    """The folders of the items of a step, or the one step that is there. Raises ``InputError``."""
    if STEP in names:
        folders = {name: place.sub(name) for name in place.folder_names()[:MAX_STEPS]}
        return {name: folder for name, folder in folders.items() if is_orbax(folder, folder.file_names())}
    steps = [] if place.distant else [name for name in place.folder_names()[:MAX_STEPS] if _is_step(name)]
    found = {name: folder for name in steps if STEP in (folder := place.sub(name)).file_names()}
    if len(found) > 1:
        hint = "give one of them as the path"
        raise InputError(f"{len(found)} steps of a training: {some(found)}", path=place.path, hint=hint)
    return found


def _is_step(name: str) -> bool:
    """Steps are numbers, or end in one."""
    return name.rpartition("_")[2].isdecimal()


def open_orbax(place: Folder, catalogue: Catalogue) -> tuple[Contents, tuple[FileRecord, ...]]:
    """The arrays of a tree, and the files that they lie in. Raises ``InputError``."""
    opened = Opened(place, catalogue)
    try:
        contents = _read(place, opened, catalogue)
    except BaseException:
        opened.close()
        raise
    return contents, opened.records()


def _read(place: Folder, opened: Opened, catalogue: Catalogue) -> Contents:
    if OCDBT in place.file_names():
        database = Database(opened, catalogue)
        arrays = Arrays(database, catalogue, place.path, strict=True)
        keys: Sequence[str] = [key for key in database.names() if key.rpartition("/")[2] in {ZARR_2, ZARR_3}]
    else:
        arrays = Arrays(opened, catalogue, place.path, strict=True)
        keys = array_keys(opened)
    names = {key: named(key) or "array" for key in keys}
    optimisers = _optimisers(names.values())
    tensors: list[TensorView] = []
    for key, name in names.items():
        if _belongs(name, optimisers):
            continue
        view = arrays.open(key, name)
        # A number of Python: the step that a training had come to.
        if view is not None and (view.shape or view.dtype.numpy.kind not in "iu"):
            tensors.append(view)
    arrays.check()
    findings = arrays.findings
    complete = arrays.complete
    if absent := sorted(_promised(opened, catalogue) - set(names.values())):
        text = f"{len(absent)} arrays of the tree are not there: {some(absent)}"
        findings.append(Finding("absent-tensor", text, absent[0]))
        complete = False
    if optimisers:
        shown = [above.removesuffix(".") or "the whole tree" for above in sorted(optimisers)]
        text = f"the state of {len(optimisers)} optimisers was set aside: {some(shown)}"
        findings.append(Finding("optimiser-state", text))
    prefix = wrapper(tensor.name for tensor in tensors)
    views = as_in_torch(renamed(tensor, tensor.name[len(prefix) :]) for tensor in tensors)
    return Contents(views, bounded(findings), complete=complete, sources=opened.sources())


def _optimisers(names: Iterable[str]) -> set[str]:
    """Where the states of optax's Adams lie: two trees of moments of one form, whatever they are called."""
    moments: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in names:
        parts = name.split(".")[:64]
        for place, part in enumerate(parts):
            if part in _PARTS[:2]:
                moments[".".join([*parts[:place], ""])][part].add(".".join(parts[place + 1 :]))
    return {above for above, found in moments.items() if found["mu"] == found["nu"]}


def _belongs(name: str, optimisers: set[str]) -> bool:
    """True for the name of a moment, or of the count beside it."""
    parts = name.split(".")[:64]
    places = (place for place, part in enumerate(parts) if part in _PARTS)
    return any(".".join([*parts[:place], ""]) in optimisers for place in places)


def _promised(opened: Opened, catalogue: Catalogue) -> set[str]:
    """Names of the arrays that ``_METADATA`` lists; empty without it. Raises ``InputError``."""
    source = opened.get(ORBAX)
    if source is None:
        return set()
    if source.size > MAX_METADATA:
        raise LimitExceededError(f"{ORBAX} of {source.size} bytes; {MAX_METADATA} are allowed", path=source.path)
    catalogue.take(source.size)
    promised: set[str] = set()
    cursor = JsonCursor(source.read(0, source.size), path=source.path, what=ORBAX)
    try:
        for field in cursor.members():
            if field != "tree_metadata":
                cursor.value()
                continue
            for _ in cursor.members():
                leaf = cursor.value()
                if isinstance(leaf, dict) and (name := _leaf(leaf)):
                    promised.add(name)
    except InputError:
        return set()  # another version's, or no JSON at all: it only lists what is found anyway
    return promised


def _leaf(leaf: dict[str, Json]) -> str:
    """The name of a leaf that is an array; empty for another, and for what is empty."""
    kind, steps = leaf.get("value_metadata"), leaf.get("key_metadata")
    if not isinstance(kind, dict) or kind.get("value_type") not in _ARRAYS or not isinstance(steps, list):
        return ""
    return ".".join(str(step.get("key")) for step in steps if isinstance(step, dict))
