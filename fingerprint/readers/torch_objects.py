"""What a pickle of PyTorch means: tensors found in its descriptions by a closed list of names.

Nothing is imported from torch. A description that asks for one of torch's rebuilding functions with the arguments that
they take is a tensor, and one that makes a numpy array out of bytes is one too; everything else is walked for tensors
inside it, whatever class it claims to be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct, field

from fingerprint import dtypes
from fingerprint.errors import LimitExceededError
from fingerprint.readers import numpy_objects
from fingerprint.readers.base import MAX_NAME, Catalogue
from fingerprint.readers.numpy_objects import ArrayNote, array_note, is_array
from fingerprint.readers.numpy_types import NoNumbersError, UnreadTypeError
from fingerprint.readers.pickles import Blob, Call, Global, Pairs, Persistent, Pickle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fingerprint.dtypes import DType

MAX_DEPTH: Final = 64
"""Deepest nesting of containers that is walked."""

STORAGE_DTYPES: Final = {
    "DoubleStorage": dtypes.F64,
    "FloatStorage": dtypes.F32,
    "HalfStorage": dtypes.F16,
    "BFloat16Storage": dtypes.BF16,
    "LongStorage": dtypes.I64,
    "IntStorage": dtypes.I32,
    "ShortStorage": dtypes.I16,
    "CharStorage": dtypes.I8,
    "ByteStorage": dtypes.U8,
    "BoolStorage": dtypes.BOOL,
    "ComplexFloatStorage": dtypes.C64,
}
_OTHER_STORAGES: Final = {
    "ComplexDoubleStorage": 16,
    "QInt32Storage": 4,
    "QInt8Storage": 1,
    "QUInt2x4Storage": 1,
    "QUInt4x2Storage": 1,
    "QUInt8Storage": 1,
    "UntypedStorage": 1,
}
"""Bytes of an element of those storages that are not read as numbers."""
TORCH_DTYPES: Final = {
    "float64": dtypes.F64,
    "float32": dtypes.F32,
    "float16": dtypes.F16,
    "bfloat16": dtypes.BF16,
    "int64": dtypes.I64,
    "int32": dtypes.I32,
    "int16": dtypes.I16,
    "int8": dtypes.I8,
    "uint64": dtypes.U64,
    "uint32": dtypes.U32,
    "uint16": dtypes.U16,
    "uint8": dtypes.U8,
    "bool": dtypes.BOOL,
    "complex64": dtypes.C64,
    "float8_e4m3fn": dtypes.F8_E4M3,
    "float8_e5m2": dtypes.F8_E5M2,
    "float8_e4m3fnuz": dtypes.F8_E4M3FNUZ,
    "float8_e5m2fnuz": dtypes.F8_E5M2FNUZ,
    "float8_e8m0fnu": dtypes.F8_E8M0,
    "float4_e2m1fn_x2": dtypes.F4,
}

_REBUILD: Final = {("torch._utils", "_rebuild_tensor"), ("torch._utils", "_rebuild_tensor_v2")}
_REBUILD_WITH_DTYPE: Final = ("torch._utils", "_rebuild_tensor_v3")
_PARAMETER: Final = {("torch._utils", "_rebuild_parameter"), ("torch._utils", "_rebuild_parameter_with_state")}
_SUBCLASS: Final = ("torch._tensor", "_rebuild_from_type_v2")
_UNREAD: Final = {
    ("torch._utils", name)
    for name in (
        "_rebuild_device_tensor_from_cpu_tensor",
        "_rebuild_device_tensor_from_numpy",
        "_rebuild_meta_tensor_no_storage",
        "_rebuild_nested_tensor",
        "_rebuild_qtensor",
        "_rebuild_sparse_csr_tensor",
        "_rebuild_sparse_tensor",
        "_rebuild_wrapper_subclass",
    )
}
_TENSORS: Final = _REBUILD | _PARAMETER | _UNREAD | {_REBUILD_WITH_DTYPE, _SUBCLASS}
"""The functions that a tensor may be made by."""
_HARMLESS: Final = {
    ("__builtin__", "set"),
    ("_codecs", "encode"),
    ("builtins", "bytearray"),
    ("builtins", "complex"),
    ("builtins", "set"),
    ("collections", "Counter"),
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("torch", "Size"),
    ("torch", "Tensor"),
    ("torch", "device"),
    ("torch.nn.parameter", "Parameter"),
    ("torch.serialization", "_get_layout"),
    ("torch.storage", "TypedStorage"),
    ("torch.storage", "UntypedStorage"),
    *numpy_objects.KNOWN,
}
_QUIET_PARTS: Final = {"_modules", "_parameters", "_buffers"}
"""Dicts inside a pickled module, which its own ``state_dict`` leaves out of the names."""


class StorageNote(Struct, frozen=True):
    """A storage as the pickle describes it: element ``dtype`` (None: raw bytes), ``key`` of its bytes, ``count``."""

    dtype: DType | None
    key: str
    count: int


class TensorNote(Struct, frozen=True):
    """A tensor as the pickle describes it; offset and strides count elements."""

    name: str
    storage: StorageNote
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def renamed(self, name: str) -> TensorNote:
        """The same tensor under another name."""
        return TensorNote(name, self.storage, self.dtype, self.offset, self.shape, self.strides)


class Found(Struct):
    """What a walk found: tensors, names of those that are there and cannot be read, and optimiser states."""

    tensors: list[TensorNote | ArrayNote] = field(default_factory=list)
    unread: list[tuple[str, str]] = field(default_factory=list)
    optimisers: list[str] = field(default_factory=list)


def unknown_globals(pickle: Pickle) -> list[Global]:
    """The names in a pickle that are not on the closed list, in the order of their first appearance."""
    return [name for name in pickle.globals if not _is_known(name)]


def _is_known(name: Global) -> bool:
    pair = (name.module, name.name)
    if pair in _HARMLESS or pair in _TENSORS:
        return True
    # TorchScript's own classes exist in its archive only.
    if name.module == "__torch__" or name.module.startswith("__torch__."):
        return True
    return name.module == "torch" and (name.name.endswith("Storage") or name.name in TORCH_DTYPES)


def find_tensors(root: Any, catalogue: Catalogue) -> Found:
    """All tensors that ``root`` (of ``read_pickle``) holds, under names joined with dots. Raises ``InputError``."""
    found = Found()
    walked: set[int] = set()
    read: dict[int, TensorNote | ArrayNote] = {}
    # Walks, not lists of parts: names are long and made by the file, and only those on the way are kept.
    walks: list[tuple[str, Iterator[tuple[Any, Any]]]] = [("", iter([("", root)]))]
    while walks:
        name, walk = walks[-1]
        key, value = next(walk, (None, _END))
        if value is _END:
            walks.pop()
        elif (isinstance(value, Persistent) and not _is_class(value)) or (
            isinstance(value, Call) and (_is_tensor(value) or is_array(value))
        ):
            _note_tensor(found, _joined(name, key, catalogue), value, catalogue, read)
        # A container that is reached on several ways is walked once: otherwise a small pickle could hold 2**n ways.
        elif isinstance(value, Call | Pairs | list | tuple) and id(value) not in walked:
            walked.add(id(value))
            if len(walks) > MAX_DEPTH:
                message = f"containers nested deeper than {MAX_DEPTH} levels"
                raise LimitExceededError(message, path=catalogue.path)
            name = _joined(name, key, catalogue)
            if _is_optimiser(value):
                found.optimisers.append(name or "the whole file")
            else:
                walks.append((name, iter(_parts(value))))
    return found


_END: Final = object()


def _note_tensor(
    found: Found, name: str, value: Call | Persistent, catalogue: Catalogue, read: dict[int, TensorNote | ArrayNote]
) -> None:
    note = read.get(id(value))
    try:
        if note is None:
            note = array_note(name, value) if isinstance(value, Call) and is_array(value) else _tensor(name, value)
            read[id(value)] = note
    except NoNumbersError:
        pass  # labels and dates, such as lists of strings are
    except (_Unread, UnreadTypeError) as reason:
        catalogue.add(name, ())
        found.unread.append((name, str(reason)))
    else:
        catalogue.add(name, note.shape)
        found.tensors.append(note if note.name == name else note.renamed(name))


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    """What a container holds, with keys; ``""`` for a part that adds nothing to the name."""
    match value:
        case Pairs(pairs):
            # Of two values under one key, the later one counts.
            last = {key: number for number, (key, _) in enumerate(pairs) if isinstance(key, str)}
            for number, (key, part) in enumerate(pairs):
                if not isinstance(key, str) or last[key] == number:
                    yield key, part
        case Call():
            yield from ((index, part) for index, part in enumerate(_sequence(value.arguments)))
            yield "", value.keywords
            yield from _parts(Pairs(value.pairs))
            yield from enumerate(value.items)
            # A state is a dict, or a pair of one for ``__dict__`` and one for slots.
            yield from (("", part) for part in _sequence(value.state))
        case _:
            yield from enumerate(value)


def _sequence(value: Any) -> tuple[Any, ...] | list[Any]:
    return value if isinstance(value, tuple | list) else (value,)


def _joined(name: str, key: Any, catalogue: Catalogue) -> str:
    if isinstance(key, Blob):
        raise LimitExceededError(f"a name of more than {MAX_NAME} characters", path=catalogue.path)
    if not isinstance(key, str | int) or key == "" or key in _QUIET_PARTS:
        return name
    if isinstance(key, str) and len(name) + len(key) > MAX_NAME:
        raise LimitExceededError(f"a name of more than {MAX_NAME} characters", path=catalogue.path)
    return f"{name}.{key}" if name else str(key)


def _is_optimiser(value: Any) -> bool:
    """True for the state of a torch optimiser, told by its form: its name may say anything."""
    if not isinstance(value, Pairs):
        return False
    fields = {key: part for key, part in value.pairs if isinstance(key, str)}
    groups = fields.get("param_groups")
    return (
        isinstance(fields.get("state"), Pairs | Call)
        and isinstance(groups, list)
        and all(isinstance(group, Pairs) and any(key == "params" for key, _ in group.pairs) for group in groups)
    )


class _Unread(Exception):  # noqa: N818 - not an error: a tensor that is known to be there and stays unread
    """Why a tensor cannot be read."""


def _function(call: Call) -> tuple[str, str]:
    return (call.function.module, call.function.name) if isinstance(call.function, Global) else ("", "")


def _is_tensor(call: Call) -> bool:
    return _function(call) in _TENSORS


def _tensor(name: str, call: Call | Persistent) -> TensorNote:
    if isinstance(call, Persistent):
        raise _Unread("a storage without a tensor")
    for _ in range(8):  # wrappers around wrappers are not endless in any real file
        function, arguments = _function(call), _sequence(call.arguments)
        if function in _PARAMETER and arguments and isinstance(arguments[0], Call):
            call = arguments[0]
        elif function == _SUBCLASS and len(arguments) >= 3:
            call = Call(arguments[0], arguments[2])
        else:
            break
    if function in _REBUILD and len(arguments) >= 4:
        storage = _storage(arguments[0])
        dtype, flags = storage.dtype, arguments[6] if len(arguments) > 6 else None
    elif function == _REBUILD_WITH_DTYPE and len(arguments) >= 7:
        storage = _storage(arguments[0])
        dtype, flags = _torch_dtype(arguments[6]), arguments[7] if len(arguments) > 7 else None
    else:
        raise _Unread(f"made by {'.'.join(function)}")
    if dtype is None:
        raise _Unread("raw bytes without a dtype")
    if isinstance(flags, Pairs) and flags.pairs:
        raise _Unread("a lazy conjugate or negative")
    offset = _size(arguments[1]) + _view_offset(arguments[0])
    return TensorNote(name, storage, dtype, offset, _sizes(arguments[2]), _sizes(arguments[3]))


def _storage(value: Any) -> StorageNote:
    key = _storage_key(value)
    if key is None:
        raise _Unread("without a storage that is known")
    kind, name, count = key[1], key[2], _size(key[4])
    if not isinstance(name, str | int):
        raise _Unread("its storage has no name")
    if kind.module == "torch.storage" and kind.name == "UntypedStorage":
        return StorageNote(None, str(name), count)
    dtype = STORAGE_DTYPES.get(kind.name) if kind.module in _STORAGE_MODULES else None
    if dtype is None:
        raise _Unread(f"storages of {kind} are not read")
    return StorageNote(dtype, str(name), count)


_STORAGE_MODULES: Final = {"torch", "torch.cuda"}


def _storage_key(value: Any) -> tuple[Any, ...] | None:
    key = value.key if isinstance(value, Persistent) else None
    known = isinstance(key, tuple) and len(key) >= 5 and key[0] == "storage" and isinstance(key[1], Global)
    return key if known else None


def _is_class(value: Persistent) -> bool:
    """True for the class of a module, which old files keep together with its source code."""
    return isinstance(value.key, tuple) and value.key[:1] == ("module",)


def _view_offset(value: Any) -> int:
    """Where in its storage a view of it begins, as early files could say: ``(key, offset, size)``, in elements."""
    key = _storage_key(value)
    view = key[5] if key is not None and len(key) > 5 else None
    if view is None:
        return 0
    if not isinstance(view, tuple) or len(view) != 3:
        raise _Unread("a view of a storage in a form that is not known")
    return _size(view[1])


def storage_sizes(pickle: Pickle) -> dict[str, tuple[int, int]]:
    """Of every storage that a pickle names: elements, and bytes of each. The first mention counts, as it does in torch.

    Storages of unknown kinds are left out.
    """
    sizes: dict[str, tuple[int, int]] = {}
    for persistent in pickle.persistents:
        key = _storage_key(persistent)
        if key is None or not isinstance(key[2], str | int) or not isinstance(key[4], int):
            continue
        dtype = STORAGE_DTYPES.get(key[1].name)
        width = dtype.bits // 8 if dtype is not None else _OTHER_STORAGES.get(key[1].name)
        if width is not None and 0 <= key[4] < 2**63:
            sizes.setdefault(str(key[2]), (key[4], width))
    return sizes


def _torch_dtype(value: Any) -> DType:
    dtype = TORCH_DTYPES.get(value.name) if isinstance(value, Global) and value.module == "torch" else None
    if dtype is None:
        raise _Unread(f"the dtype {value} is not read" if isinstance(value, Global) else "without a dtype")
    return dtype


def _sizes(value: Any) -> tuple[int, ...]:
    # A torch.Size may be pickled as a call with a tuple.
    if isinstance(value, Call) and isinstance(value.arguments, tuple) and len(value.arguments) == 1:
        value = value.arguments[0]
    if not isinstance(value, tuple | list):
        raise _Unread("sizes that are no tuple")
    return tuple(_size(size) for size in value)


def _size(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise _Unread("a size that is no whole number of 63 bits")
    return value
