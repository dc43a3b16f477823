"""Finds quantised modules among the tensors of a checkpoint, by names and shapes, and puts their weights in place.

A layout is told by the names that its library gives to the tensors of a module; the shapes must agree. Settings in the
config are heard only where shapes leave something open. What looks quantised and is not understood stays as it is, with
a finding.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from fingerprint.dtypes import Kind
from fingerprint.errors import InputError
from fingerprint.hints import Hints
from fingerprint.quant.awq import FAST_INPUTS, FAST_ROWS, Awq, AwqGemv, AwqGemvFast, padded_groups
from fingerprint.quant.flat import Bnb4, Hqq, Nested
from fingerprint.quant.gptq import Gptq
from fingerprint.quant.marlin import TILE, Marlin
from fingerprint.quant.modules import Module, NotUnderstoodError, Restored, as_grid, block_size, demand
from fingerprint.quant.rows import MAX_ROW, Exponents
from fingerprint.quant.scaled import Floats4, Mlx, PackedInts, Scaled
from fingerprint.readers.base import Contents, Finding, some
from fingerprint.readers.bounded_json import JsonCursor
from fingerprint.tensors import Reshaped, Transposed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fingerprint.tensors import TensorView

MAX_STATE = 1 << 14
"""Most bytes of the settings that bitsandbytes keeps beside a weight."""
_INTS = (Kind.INT, Kind.UINT)


class AboutLayout(Struct, frozen=True):
    """A row of the table of quantised layouts, in Markdown: ``tensors`` of a module, and the types it is ``shown`` as.

    ``read_by`` are the functions of this module that put it together. A star marks what the config is heard about.
    """

    title: str
    tensors: str
    shown: str
    read_by: tuple[Callable[[Module, str], Restored | None], ...]


def layouts() -> set[Callable[[Module, str], Restored | None]]:
    """Everything that puts a layout together."""
    return {*_LAYOUTS.values(), *(layout for _, layout in _SUFFIXES)}


def dequantised(contents: Contents) -> Contents:
    """``contents`` of a whole checkpoint with quantised modules replaced by views of the weights they stand for.

    Linear in the number of tensors; reads no more than the few numbers that some layouts keep beside a weight.
    """
    modules = _modules(contents.tensors)
    hints = Hints(contents.metadata)
    made: dict[str, TensorView] = {}
    gone: set[str] = set()
    refused: dict[str, list[str]] = defaultdict(list)
    for name, leaves in modules.items():
        module = Module(name, leaves, hints.of(f"{name}."))
        for leaf in sorted(leaves):
            layout = _layout(leaf)
            if layout is None or _full(name, leaf) in gone:
                continue
            try:
                restored = layout(module, leaf)
            except (NotUnderstoodError, InputError) as error:
                refused[str(error)[:200]].append(_full(name, leaf))
                continue
            if restored is not None:
                gone.update(_full(name, one) for one in restored.leaves)
                made[_full(name, leaf)] = restored.view
    if not made and not refused:
        return contents
    tensors = [view for tensor in contents.tensors if (view := _kept(tensor, made, gone)) is not None]
    findings = contents.findings
    for reason, names in refused.items():
        text = f"{len(names)} tensors look quantised and were read as stored ({reason}): {some(names)}"
        findings += (Finding("quantised-layout", text, names[0]),)
    return replace(contents, tensors=tuple(tensors), findings=findings)


def _kept(tensor: TensorView, made: Mapping[str, TensorView], gone: set[str]) -> TensorView | None:
    if tensor.name in made:
        return made[tensor.name]
    return None if tensor.name in gone else tensor


def _full(module: str, leaf: str) -> str:
    return f"{module}.{leaf}" if module else leaf


def _modules(tensors: Sequence[TensorView]) -> dict[str, dict[str, TensorView]]:
    """The tensors of every module that has one whose name some layout knows."""
    modules: dict[str, dict[str, TensorView]] = defaultdict(dict)
    for tensor in tensors:
        module, _, leaf = tensor.name.rpartition(".")
        modules[module][leaf] = tensor
    for name in list(modules):
        # bitsandbytes hangs its settings below the weight: "x.weight.absmax", "x.weight.quant_state.…".
        if name.endswith(".quant_state") or name == "quant_state":
            above = name.removesuffix("quant_state").removesuffix(".")
            modules[above] |= {f"quant_state.{leaf}": view for leaf, view in modules.pop(name).items()}
    for name in list(modules):
        module, _, leaf = name.rpartition(".")
        if "absmax" in modules[name] and leaf in modules.get(module, {}):
            modules[module] |= {f"{leaf}.{inner}": view for inner, view in modules.pop(name).items()}
    return {name: leaves for name, leaves in modules.items() if any(map(_layout, leaves))}


def _layout(leaf: str) -> Callable[[Module, str], Restored | None] | None:
    if leaf in _LAYOUTS:
        return _LAYOUTS[leaf]
    for suffix, layout in _SUFFIXES:
        if leaf.endswith(suffix):
            return layout
    return None


# --- GPTQ and AWQ ---------------------------------------------------------------------------------------------------


def _gptq_or_awq(module: Module, leaf: str) -> Restored | None:
    qweight = module.need(leaf, *_INTS, rank=2)
    scales = module.need("scales", Kind.FLOAT, rank=2)
    if "qzeros" not in module.leaves and qweight.shape[1] == 2 * scales.shape[1]:
        return _marlin(module, leaf, "scales")
    if qweight.dtype.bits == 16:
        return _awq_of_fast_vectors(module, leaf, scales)
    qzeros = module.need("qzeros", *_INTS, rank=2)
    demand(qweight.dtype.bits == qzeros.dtype.bits == 32, "words are not of 32 bits")
    groups, outputs = scales.shape
    if qweight.shape[0] == groups == qzeros.shape[0] and outputs == 8 * qzeros.shape[1] != 8 * qweight.shape[1]:
        return _awq_of_vectors(module, leaf, scales, qzeros)
    demand(min(groups, outputs, *qweight.shape) > 0 and qzeros.shape[0] == groups, "sizes do not agree")
    name = _full(module.name, "weight")
    if qweight.shape[1] == qzeros.shape[1] and qweight.shape[1] * 8 == outputs:
        inputs = qweight.shape[0]
        demand(inputs % groups == 0, f"{groups} groups of {inputs} inputs")
        stored = Awq(name, "AWQ_4", (inputs, _columns(outputs)), qweight, qzeros, scales)
        return Restored(Transposed(stored, name), frozenset({leaf, "scales", "qzeros"}))
    demand(qweight.shape[1] == outputs, f"qweight {list(qweight.shape)} and scales {list(scales.shape)}")
    bits, rest = divmod(qzeros.shape[1] * 32, outputs)
    demand(not rest and bits in {2, 3, 4, 8}, f"zero points of {qzeros.shape[1] * 32 / outputs:g} bits")
    inputs, rest = divmod(qweight.shape[0] * 32, bits)
    demand(not rest, "words that are not full")
    g_idx = module.get("g_idx", *_INTS, rank=1)
    demand(g_idx is None or g_idx.shape == (inputs,), "an index of groups of another length")
    demand(groups <= inputs, "more groups than inputs")
    offset = 0 if module.hint("checkpoint_format") == "gptq_v2" else 1
    shape = (inputs, _columns(outputs))
    view = Gptq(name, f"GPTQ_{bits}", shape, bits, qweight, qzeros, scales, g_idx, offset)
    return Restored(Transposed(view, name), frozenset({leaf, "scales", "qzeros"} | ({"g_idx"} & module.leaves.keys())))


def _awq_of_vectors(module: Module, leaf: str, scales: TensorView, qzeros: TensorView) -> Restored:
    qweight = module.need(leaf, *_INTS, rank=2)
    rows, columns = qweight.shape[0], _columns(qweight.shape[1] * 8)
    demand(rows > 0, "no rows")
    size = _awq_group(module, columns, qzeros.shape[1])
    view = AwqGemv(_full(module.name, "weight"), "AWQ_4", (rows, columns), size, qweight, qzeros, scales)
    return Restored(view, frozenset({leaf, "scales", "qzeros"}))


def _awq_of_fast_vectors(module: Module, leaf: str, scales: TensorView) -> Restored:
    qweight = module.need(leaf, *_INTS, rank=2)
    qzeros = module.need("qzeros", Kind.FLOAT, rank=2)
    rows, columns = qweight.shape[0] * FAST_ROWS, _columns(qweight.shape[1])
    demand(qzeros.shape == scales.shape and scales.shape[1] == rows > 0, "sizes do not agree")
    demand(columns % FAST_INPUTS == 0 and scales.shape[0] % 8 == 0, f"rows of {columns} elements")
    size = _awq_group(module, columns, scales.shape[0] // 8)
    view = AwqGemvFast(_full(module.name, "weight"), "AWQ_4", (rows, columns), size, qweight, qzeros, scales)
    return Restored(view, frozenset({leaf, "scales", "qzeros"}))


def _awq_group(module: Module, inputs: int, held: int) -> int:
    """How many inputs share a scale, where ``held`` words hold the zero points of a row."""
    hinted = module.hinted_number("group_size", "q_group_size")
    tried = (hinted,) if hinted else (128, 64, 32, inputs)
    size = next((size for size in tried if padded_groups(inputs, size) == held), 0)
    demand(size > 0, f"{held} words of zero points for {inputs} inputs")
    return size


def _marlin_of_its_own(module: Module, leaf: str) -> Restored | None:
    return _marlin(module, leaf, "s")


def _marlin(module: Module, leaf: str, scale: str) -> Restored | None:
    packed, scales = module.leaves[leaf], module.leaves.get(scale)
    if (
        scales is None
        or packed.dtype.kind not in _INTS
        or packed.dtype.bits != 32
        or scales.dtype.kind is not Kind.FLOAT
    ):
        return None
    demand(len(packed.shape) == len(scales.shape) == 2, "more or fewer axes than two")
    inputs, (groups, outputs) = packed.shape[0] * TILE, scales.shape
    demand(packed.shape[1] == 2 * outputs and outputs % 64 == 0, f"{list(packed.shape)} for {outputs} outputs")
    demand(min(inputs, groups, outputs) > 0 and inputs % groups == 0, f"{groups} groups of {inputs} inputs")
    name = _full(module.name, "weight")
    view = Marlin(name, "MARLIN_4", (inputs, _columns(outputs)), packed, scales)
    used = {leaf, scale} | ({"workspace"} & module.leaves.keys())
    return Restored(Transposed(view, name), frozenset(used))


def _columns(size: int) -> int:
    demand(0 < size <= MAX_ROW, f"rows of {size} elements")
    return size


# --- bitsandbytes ---------------------------------------------------------------------------------------------------


def _bitsandbytes_4bit(module: Module, leaf: str) -> Restored | None:
    base = leaf.removesuffix(".absmax")
    states = {kind: f"{base}.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4")}
    kind = next((kind for kind, key in states.items() if key in module.leaves), "")
    demand(bool(kind), "its quant_state is absent")
    codes = module.need(base)
    table = module.need(f"{base}.quant_map", Kind.FLOAT, rank=1)
    absmax = module.need(leaf)
    state = _state(module.need(states[kind], *_INTS, rank=1))
    shape, block = _sizes(state.get("shape")), _positive(state.get("blocksize"))
    count = math.prod(shape)
    held = codes.dtype.nbytes(math.prod(codes.shape)) if codes.dtype.bits >= 8 else None
    demand(held == -(-count // 2), "codes do not fill the shape")
    demand(table.shape == (16,) and math.prod(absmax.shape) == -(-count // block), "scales do not fit the shape")
    nested = None
    if absmax.dtype.kind is not Kind.FLOAT:
        inner_table = module.need(f"{base}.nested_quant_map", Kind.FLOAT, rank=1)
        inner = module.need(f"{base}.nested_absmax", Kind.FLOAT)
        inner_block = _positive(state.get("nested_blocksize"))
        offset = state.get("nested_offset")
        demand(isinstance(offset, int | float), "nested_offset is no number")
        demand(inner_table.shape == (256,) and absmax.dtype.name == "U8", "nested scales are no bytes")
        demand(math.prod(inner.shape) == -(-math.prod(absmax.shape) // inner_block), "nested scales do not fit")
        nested = Nested(inner_table, inner, inner_block, float(offset) if isinstance(offset, int | float) else 0.0)
    view = Bnb4(_full(module.name, base), kind.upper(), shape, codes, table, absmax, block, nested)
    used = {base, *(key for key in module.leaves if key.startswith(f"{base}."))}
    return Restored(view, frozenset(used))


def _state(view: TensorView) -> dict[str, object]:
    count = math.prod(view.shape)
    demand(0 < count <= MAX_STATE and view.dtype.bits == 8, f"a quant_state of {count} elements")
    raw = view.read(0, count).tobytes()
    value = JsonCursor(raw, path=view.name, what="quant_state").value()
    if not isinstance(value, dict):
        raise NotUnderstoodError("its quant_state is no object")
    return dict(value)


def _sizes(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not 0 < len(value) <= 4:
        raise NotUnderstoodError("its shape is no short list")
    return tuple(_positive(size) for size in value)


def _positive(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= 2**40:
        raise NotUnderstoodError(f"{json.dumps(str(value)[:20])} where a positive number is wanted")
    return value


def _bitsandbytes_8bit(module: Module, leaf: str) -> Restored | None:
    weight = module.need("weight", Kind.INT, rank=2)
    stats = module.need(leaf, Kind.FLOAT, rank=1)
    demand(weight.dtype.bits == 8 and stats.shape == weight.shape[:1], "sizes do not agree")
    form = module.numbers("weight_format")
    demand(form in ([], [0]), f"the order {form} of its elements")
    scale = Reshaped(stats, stats.name, (*stats.shape, 1))
    shape = (weight.shape[0], _columns(weight.shape[1]))
    # The constant of bitsandbytes' int8_vectorwise_dequant: 1 / 127 in float32.
    view = Scaled(
        _full(module.name, "weight"), "LLM_INT8", shape, weight, scale, None, (1, shape[1]), shape[0], 1 / 127
    )
    return Restored(view, frozenset({"weight", leaf} | ({"weight_format"} & module.leaves.keys())))


# --- compressed-tensors, ModelOpt, FP8 ------------------------------------------------------------------------------


def _packed_weight(module: Module, leaf: str) -> Restored | None:
    packed = module.need(leaf, *_INTS, rank=2)
    scale = module.need("weight_scale")
    if packed.dtype.bits == 8:
        return _packed_floats(module, leaf, packed, scale)
    demand(packed.dtype.bits == 32 and scale.dtype.kind is Kind.FLOAT, f"words of type {packed.dtype.name}")
    shape = module.numbers("weight_shape")
    demand(len(shape) == 2 and shape[0] == packed.shape[0] > 0, f"weight_shape {shape[:4]}")
    rows, columns = shape[0], _columns(shape[1])
    hinted = module.hinted_number("config_groups.group_0.weights.num_bits")
    tried = (bits for bits in (hinted, 4, 8, 2, 3, 5, 6, 7) if 0 < bits <= 8)
    bits = next((bits for bits in tried if _words(columns, bits) == packed.shape[1]), 0)
    demand(bits > 0, f"{packed.shape[1]} words for {columns} columns")
    grid = as_grid(scale, (rows, columns))
    demand(grid.shape[0] == rows and 0 < grid.shape[1] <= columns, f"scales of shape {list(scale.shape)}")
    zero = module.get("weight_zero_point", *_INTS, rank=2)
    demand(
        zero is None or (zero.dtype.bits == 32 and zero.shape == (_words(rows, bits), grid.shape[1])),
        "zero points of another shape",
    )
    g_idx = module.get("weight_g_idx", *_INTS, rank=1)
    demand(g_idx is None or g_idx.shape == (columns,), "an index of groups of another length")
    view = PackedInts(_full(module.name, "weight"), f"PACKED_I{bits}", (rows, columns), bits, packed, grid, zero, g_idx)
    extra = {"weight_shape", "weight_zero_point", "weight_g_idx"} & module.leaves.keys()
    return Restored(view, frozenset({leaf, "weight_scale"} | extra))


def _words(size: int, bits: int) -> int:
    return -(-size * bits // 32)


def _packed_floats(module: Module, leaf: str, packed: TensorView, scale: TensorView) -> Restored:
    """Two 4-bit floats in a byte: NVFP4 and MXFP4 of compressed-tensors (``weight_packed``) and of ModelOpt."""
    demand(len(packed.shape) >= 2, f"codes of shape {list(packed.shape)}")
    shape = (*packed.shape[:-1], _columns(packed.shape[-1] * 2))
    exponents = scale.dtype.name in {"U8", "F8_E8M0"}
    demand(exponents or scale.dtype.name == "F8_E4M3", f"scales of type {scale.dtype.name}")
    group = 32 if exponents else 16
    demand(scale.shape == (*shape[:-1], shape[-1] // group) and shape[-1] % group == 0, "scales of another shape")
    name, used = _full(module.name, "weight"), {leaf, "weight_scale"}
    factors = [key for key in ("weight_global_scale", "weight_scale_2") if key in module.leaves]
    factor = module.need(factors[0], Kind.FLOAT) if factors else None
    demand(factor is None or math.prod(factor.shape) == 1, "more than one scale for the whole tensor")
    demand(exponents or factor is not None, "the scale of the whole tensor is absent")
    divided = factors[:1] == ["weight_global_scale"]
    view = Floats4(name, "MXFP4" if exponents else "NVFP4", shape, packed, scale, exponents, factor, divided)
    return Restored(view, frozenset(used | set(factors[:1])))


def _scaled_weight(module: Module, leaf: str) -> Restored | None:
    """8-bit floats or integers with scales: ``x_scale_inv`` (DeepSeek), ``x_scale`` (and ``x_zero_point``)."""
    base = leaf.removesuffix("_inv").removesuffix("_scale")
    weight = module.leaves.get(base)
    if weight is None:
        return None
    if weight.dtype.name == "U8" and base == "weight":
        return _packed_floats(module, base, weight, module.need(leaf))
    name, kind = _full(module.name, base), weight.dtype.kind
    if weight.dtype.bits != 8 or kind not in {Kind.FLOAT, Kind.INT} or len(weight.shape) < 2:
        return None
    shape = (*weight.shape[:-1], _columns(weight.shape[-1]))
    scale = module.need(leaf, Kind.FLOAT, Kind.UINT)
    if scale.dtype.kind is Kind.UINT:
        demand(scale.dtype.name == "U8" and kind is Kind.FLOAT, f"scales of type {scale.dtype.name}")
        scale = Exponents(scale)
    grid, block, height = _blocks(module, scale, shape)
    zero = module.get(f"{base}_zero_point", *_INTS, Kind.FLOAT)
    if zero is not None:
        zero = as_grid(zero, shape)
        demand(zero.shape == grid.shape, "zero points of another shape")
    view = Scaled(name, f"{weight.dtype.name}_SCALED", shape, weight, grid, zero, block, height)
    return Restored(view, frozenset({base, leaf} | ({f"{base}_zero_point"} & module.leaves.keys())))


def _blocks(module: Module, scale: TensorView, shape: tuple[int, ...]) -> tuple[TensorView, tuple[int, int], int]:
    """Scales as a grid, rows and columns of a block, and the rows after which blocks begin anew."""
    demand(min(shape) > 0, "no elements")
    grid = as_grid(scale, shape)
    if math.prod(grid.shape) == 1:
        rows = math.prod(shape[:-1])
        return grid, (rows, shape[-1]), rows
    hinted = module.hinted_number("weight_block_size.0"), module.hinted_number("weight_block_size.1")
    height = block_size(shape[-2], grid.shape[-2], hinted[0])
    width = block_size(shape[-1], grid.shape[-1], hinted[1])
    return grid, (height, width), shape[-2]


# --- MX blocks (gpt-oss), MLX, HQQ ----------------------------------------------------------------------------------


def _mx_blocks(module: Module, leaf: str) -> Restored | None:
    base = leaf.removesuffix("_blocks")
    blocks, scales = module.leaves[leaf], module.leaves.get(f"{base}_scales")
    if scales is None or blocks.dtype.name != "U8" or scales.dtype.name not in {"U8", "F8_E8M0"}:
        return None
    demand(len(blocks.shape) >= 3 and blocks.shape[-1] == 16, f"blocks of shape {list(blocks.shape)}")
    demand(scales.shape == blocks.shape[:-1] and min(scales.shape) > 0, f"scales of shape {list(scales.shape)}")
    shape = (*blocks.shape[:-2], _columns(blocks.shape[-2] * 32))
    view = Floats4(_full(module.name, base), "MXFP4", shape, blocks, scales, exponents=True)
    return Restored(view, frozenset({leaf, f"{base}_scales"}))


def _mlx(module: Module, leaf: str) -> Restored | None:
    weight, scales = module.leaves.get("weight"), module.leaves[leaf]
    if weight is None or weight.dtype.name != "U32":
        return None
    demand(len(weight.shape) >= 2 and weight.shape[:-1] == scales.shape[:-1], "scales of another shape")
    held, groups = weight.shape[-1], scales.shape[-1]
    demand(min(*weight.shape, groups) > 0, "no elements")
    name = _full(module.name, "weight")
    biases = module.get("biases", Kind.FLOAT)
    if biases is None:
        demand(scales.dtype.name == "U8" and held * 8 == groups * 32, "biases are absent, and it is not MXFP4")
        shape = (*weight.shape[:-1], _columns(held * 8))
        return Restored(Floats4(name, "MXFP4", shape, weight, scales, exponents=True), frozenset({"weight", leaf}))
    demand(biases.shape == scales.shape and scales.dtype.kind is Kind.FLOAT, "biases of another shape")
    for group in dict.fromkeys((module.hinted_number("group_size"), 64, 32, 128)):
        bits, rest = divmod(held * 32, max(groups * group, 1))
        if group and not rest and bits in {2, 3, 4, 5, 6, 8}:
            shape = (*weight.shape[:-1], _columns(groups * group))
            view = Mlx(name, f"MLX_{bits}", shape, bits, weight, scales, biases)
            return Restored(view, frozenset({"weight", leaf, "biases"}))
    raise NotUnderstoodError(f"{held} words for {groups} groups")


def _hqq(module: Module, leaf: str) -> Restored | None:
    packed = module.need(leaf, Kind.UINT)
    scale, zero = module.need("scale", Kind.FLOAT), module.need("zero", Kind.FLOAT)
    numbers = {key: module.numbers(key) for key in ("nbits", "group_size", "axis")}
    demand(all(len(found) == 1 for found in numbers.values()), "nbits, group_size or axis is absent")
    bits, group, axis = (numbers[key][0] for key in ("nbits", "group_size", "axis"))
    shape = tuple(module.numbers("shape"))
    demand(0 < len(shape) <= 4 and min(shape) > 0, f"shape {list(shape)}")
    demand(bits in {1, 2, 4, 8} and packed.dtype.name == "U8", f"{bits} bits in elements of type {packed.dtype.name}")
    count = math.prod(shape)
    demand(group > 0 and count % group == 0 and axis in {0, 1}, f"groups of {group} along axis {axis}")
    rows, columns = (count // group, group) if axis == 1 else (group, count // group)
    strips = 8 // bits
    demand(
        rows % strips == 0 and math.prod(packed.shape) * strips == count, "the packed weight does not fill its shape"
    )
    scales = rows if axis == 1 else columns
    demand(math.prod(scale.shape) == math.prod(zero.shape) == scales, "scales of another number")
    view = Hqq(_full(module.name, "weight"), f"HQQ_{bits}", shape, bits, packed, scale, zero, rows, columns, axis == 1)
    used = {leaf, "scale", "zero", *(_HQQ_SETTINGS & module.leaves.keys())}
    return Restored(view, frozenset(used))


_HQQ_SETTINGS = frozenset({
    "nbits", "group_size", "shape", "axis", "packing", "unpack_view_dtype", "view_as_float", "quant_scale",
    "quant_zero", "compute_dtype", "offload_meta", "stores_quant_config", "channel_wise", "optimize", "round_zero",
    "encoded_state_dict",
})  # fmt: skip

_LAYOUTS: dict[str, Callable[[Module, str], Restored | None]] = {
    "qweight": _gptq_or_awq,
    "B": _marlin_of_its_own,
    "SCB": _bitsandbytes_8bit,
    "weight_packed": _packed_weight,
    "scales": _mlx,
    "W_q": _hqq,
}
_SUFFIXES: tuple[tuple[str, Callable[[Module, str], Restored | None]], ...] = (
    (".absmax", _bitsandbytes_4bit),
    ("_scale_inv", _scaled_weight),
    ("_scale", _scaled_weight),
    ("_blocks", _mx_blocks),
)

ABOUT = (
    AboutLayout(
        "GPTQ, 2, 3, 4, 8 bits; `checkpoint_format`* tells the second version",
        "`qweight`, `qzeros`, `scales`, `g_idx`",
        "`GPTQ_4`",
        (_gptq_or_awq,),
    ),
    AboutLayout(
        "AWQ: GEMM, GEMV, fast GEMV; `group_size`* of the latter two",
        "`qweight`, `qzeros`, `scales`",
        "`AWQ_4`",
        (_gptq_or_awq,),
    ),
    AboutLayout(
        "Marlin, 4 bits, symmetric", "`B`, `s`; `qweight`, `scales`", "`MARLIN_4`", (_marlin_of_its_own, _gptq_or_awq)
    ),
    AboutLayout(
        "bitsandbytes NF4, FP4, scales plain or nested",
        "`weight`, `weight.absmax`, `weight.quant_state.…`",
        "`NF4`, `FP4`",
        (_bitsandbytes_4bit,),
    ),
    AboutLayout("bitsandbytes LLM.int8()", "`weight`, `SCB`, `weight_format`", "`LLM_INT8`", (_bitsandbytes_8bit,)),
    AboutLayout(
        "compressed-tensors, 2 to 8 bits packed",
        "`weight_packed`, `weight_scale`, `weight_zero_point`, `weight_g_idx`, `weight_shape`",
        "`PACKED_I4`",
        (_packed_weight,),
    ),
    AboutLayout(
        "8-bit floats or integers with scales by tensor, row, group or block: DeepSeek, compressed-tensors, ModelOpt, "
        "MXFP8",
        "`x`, `x_scale_inv` or `x_scale`, `x_zero_point`",
        "`F8_E4M3_SCALED`, `I8_SCALED`",
        (_scaled_weight,),
    ),
    AboutLayout(
        "MXFP4: gpt-oss, compressed-tensors, MLX",
        "`x_blocks`, `x_scales`; `weight_packed`, `weight_scale`",
        "`MXFP4`",
        (_mx_blocks, _packed_weight, _mlx),
    ),
    AboutLayout(
        "NVFP4: compressed-tensors, ModelOpt",
        "`weight_packed`, `weight_scale`, `weight_global_scale`; `weight`, `weight_scale`, `weight_scale_2`",
        "`NVFP4`",
        (_packed_weight, _scaled_weight),
    ),
    AboutLayout(
        "MLX, 2 to 8 bits; group size* (64 if not claimed)", "`weight`, `scales`, `biases`", "`MLX_4`", (_mlx,)
    ),
    AboutLayout(
        "HQQ, 1, 2, 4, 8 bits",
        "`W_q`, `scale`, `zero`, `nbits`, `group_size`, `axis`, `shape`",
        "`HQQ_4`",
        (_hqq,),
    ),
)
"""Rows of the table of quantised layouts."""
