"""Hidden units of convolutional and recurrent networks, written down so that permuting and rescaling does not show.

Channels of a convolution may be put in any order and, between ReLUs, multiplied by positive numbers; a batch norm may
be folded into the convolution in front of it. What a chain of kernels composes to, ``W_l * ... * W_1`` in the space of
the network's own input, shows nothing of that: rows of it are the units' coordinates, and what the next layer makes of
a unit, without the unit's own share, stands opposite. Nothing in such a network is odd, so there are no coins.

A unit of an LSTM or GRU has one: its candidate gate's rows and whatever reads its state may be negated together, since
tanh is odd. The rows of the other gates do not see it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from fingerprint.dtypes import to_float32
from fingerprint.gauge.frames import make_frames
from fingerprint.gauge.gram import outer, sketched
from fingerprint.records import LayerGram, NeuronSample
from fingerprint.signs import Stream, sample_indices, sign_matrix
from fingerprint.vectors import row_norms, unit_rows
from fingerprint.vocabulary import Circuit, Content, Frame, Role

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from fingerprint.canonical import CanonicalTensor
    from fingerprint.parameters import Parameters

    Float32 = NDArray[np.float32]
    Float64 = NDArray[np.float64]

RECURRENT: Final = {4: "lstm", 3: "gru"}
"""Cells by their number of gates."""
CANDIDATE: Final = 2
"""Place of the gate through tanh among the gates, in the order of PyTorch and Keras."""
MOST_ELEMENTS: Final = 1 << 23
"""Of one kernel or matrix that is read whole."""
MOST_COMPOSED: Final = 1 << 22
DEEPEST: Final = 5
"""Layers of a chain that are looked at, from the input: compositions of many kernels come to resemble each other."""
MOST_CHAINS: Final = 8
MOST_CELLS: Final = 4
MOST_LOOPS: Final = 5
MOST_SAMPLES: Final = 12
"""Samples of a registered model, one a layer and frame."""
MOST_OF_SUSPECT: Final = 160
_LEAST: Final = 16
_MOST_INPUTS: Final = 16
_EPSILON: Final = 1e-5
_NAMED: Final = re.compile(r"(.*)weight_(ih|hh)_l(\d{1,3})(_reverse)?")


@dataclass(frozen=True, slots=True)
class _Map:
    """A kernel as (out, in, height, width), with the factors of a batch norm behind it folded in; or a classifier."""

    position: int
    kernel: Float64


@dataclass(frozen=True, slots=True)
class Units:
    """Samples of units, the vectors by which their layers are looked up, and what is told of tables, by position."""

    samples: tuple[NeuronSample, ...] = ()
    grams: tuple[LayerGram, ...] = ()
    roles: Mapping[int, Role] = field(default_factory=dict)


def sample_units(
    tensors: Sequence[CanonicalTensor], contents: Sequence[Content], parameters: Parameters, *, suspect: bool
) -> Units:
    """Sample the units of a network that has no residual stream. Raises ``InputError``.

    Of a suspect more units are kept, and every chain that its shapes allow.
    """
    usable = [
        position
        for position, tensor in enumerate(tensors)
        if contents[position] in {Content.WEIGHTS, Content.SMALL}
        and len(tensor.view.shape) >= 2
        and int(np.prod(tensor.view.shape)) <= MOST_ELEMENTS
    ]
    count = 1 << 12 if suspect else parameters.gauge_samples
    found = [
        *_recurrent(tensors, usable, count, parameters, suspect=suspect),
        *_convolutional(tensors, usable, count, parameters),
    ]
    found = found[: MOST_OF_SUSPECT if suspect else MOST_SAMPLES]
    grams = [gram for sample in found if sample.frame == Frame.UNITS for gram in _gram(sample, parameters)]
    return Units(tuple(found), tuple(grams), _roles(tensors, usable, suspect=suspect))


def _gram(sample: NeuronSample, parameters: Parameters) -> Iterator[LayerGram]:
    """``Σ`` of outer products over the units kept: blind to their order, to scales and to coins."""
    last = sample.down if sample.up is None else sample.up**2
    last = last - last.mean(axis=0)
    vector = sketched(outer(unit_rows(sample.gate), unit_rows(last)), Circuit.DOWN_UP, parameters)
    if vector is not None:
        yield LayerGram(None, sample.frame, Circuit.DOWN_UP, (sample.tensors[0], sample.tensors[2]), vector)


def _read(tensor: CanonicalTensor) -> Float64:
    values = to_float32(tensor.view.read(0, int(np.prod(tensor.view.shape)))).astype(np.float64)
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    largest = float(np.abs(values).max(initial=0.0))
    scaled: Float64 = (values / largest if largest > 0 else values).reshape(tensor.view.shape)
    return scaled


def _chosen(size: int, count: int, parameters: Parameters) -> NDArray[np.int64]:
    if size <= count:
        return np.arange(size, dtype=np.int64)
    return sample_indices(parameters.seed, Stream.NEURON_SAMPLE, size, count).astype(np.int64)


def _directions(length: int, parameters: Parameters) -> Float64:
    signs: Float64 = sign_matrix(parameters.seed, Stream.FRAME, length, parameters.frame_width).astype(np.float64)
    return signs / np.sqrt(signs.shape[1])


# --- recurrent cells --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Cell:
    """The matrix that reads the network's input, (gates * units, inputs), and (gates * units, units) beside it.

    ``levels`` are input and loop matrices of the levels above, the first pair being this cell's loop alone; empty where
    names do not tell, and ``others`` are then all matrices that may be one of them. ``turned``: stored as (in, out).
    """

    matrix: int
    gates: int
    turned: bool
    levels: tuple[tuple[int, int], ...]
    others: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows (gates * units, inputs) of one matrix in the space of the network's input; whether its units have coins."""

    position: int
    rows: Float64
    coins: bool


def _recurrent(
    tensors: Sequence[CanonicalTensor], usable: Sequence[int], count: int, parameters: Parameters, *, suspect: bool
) -> Iterator[NeuronSample]:
    """Units of recurrent cells in fixed directions of the network's input, and in those of its embeddings."""
    for cell in _cells(tensors, usable, suspect=suspect):
        table = _table(tensors, usable, cell)
        width = tensors[cell.matrix].view.shape[0 if cell.turned else 1]
        tables = [] if table is None else [(Frame.ANCHORS, tensors[table].view)]
        views = [(Frame.FIXED, _directions(width, parameters))]
        views += [(Frame.UNITS, frame.directions.T) for frame in make_frames(tables, parameters, centred=False)]
        for found in _in_input_space(tensors, cell):
            for name, directions in views:
                yield _unit_sample(found, cell.gates, name, directions, count, parameters)


def _unit_sample(
    found: _Rows, gates: int, frame: Frame, directions: Float64, count: int, parameters: Parameters
) -> NeuronSample:
    """A unit as a neuron: the other gates in place of its gate, the candidate's row in place of up, nothing of down."""
    rows = (found.rows @ directions).reshape(gates, -1, directions.shape[1])
    rows -= rows.mean(axis=1, keepdims=True)
    width = rows.shape[2]
    mixing = _directions(width * gates, parameters).reshape(gates, width, -1)
    even = np.zeros(rows.shape[1:], np.float32)
    for gate in range(gates):
        if gate != CANDIDATE:
            even += (unit_rows(rows[gate].astype(np.float32)) @ mixing[gate]).astype(np.float32)
    indices = _chosen(rows.shape[1], count, parameters)
    return NeuronSample(
        layer=None,
        expert=None,
        frame=frame,
        activation=RECURRENT[gates] if found.coins else "",
        size=rows.shape[1],
        tensors=(found.position, found.position, found.position),
        indices=indices,
        gate=even[indices],
        up=rows[CANDIDATE][indices].astype(np.float32),
        down=np.zeros((indices.size, parameters.frame_width), np.float32),
    )


def _in_input_space(tensors: Sequence[CanonicalTensor], cell: _Cell) -> Iterator[_Rows]:
    """Every matrix of a stack of cells, composed with the candidate gates in front: their units' order and signs cancel.

    A loop's rows have the coins of the rows beside it, which count once.
    """

    def read(position: int) -> Float64:
        matrix = _read(tensors[position])
        return matrix.T if cell.turned else matrix

    def candidate(rows: Float64) -> Float64:
        part = rows.reshape(cell.gates, -1, rows.shape[1])[CANDIDATE]
        scaled: Float64 = part / max(float(np.abs(part).max()), 1e-30)
        return scaled

    first = read(cell.matrix)
    yield _Rows(cell.matrix, first, coins=True)
    front = candidate(first)
    if cell.levels:
        for matrix, loop in cell.levels:
            if matrix >= 0:
                rows = read(matrix) @ front
                yield _Rows(matrix, rows, coins=True)
                front = candidate(rows)
            yield _Rows(loop, read(loop) @ front, coins=False)
        return
    composed = {other: read(other) @ front for other in cell.others}
    for other, rows in composed.items():
        yield _Rows(other, rows, coins=False)
    for other, rows in composed.items():
        for following in cell.others:
            if following != other:
                yield _Rows(following, read(following) @ candidate(rows), coins=False)


def _cells(tensors: Sequence[CanonicalTensor], usable: Sequence[int], *, suspect: bool) -> list[_Cell]:
    """The stacks of cells that names tell of a registered model, and else all that shapes allow, up to a bound.

    A cell whose inputs are as many as its units cannot be told from its loop and is left out.
    """
    shapes = {i: tensors[i].view.shape for i in usable if len(tensors[i].view.shape) == 2}
    named = [] if suspect else _named_cells(tensors, shapes)
    if named:
        return named
    found = []
    order = sorted(shapes, key=lambda position: _natural(tensors[position].name))
    for position in order:
        for turned in (False, True):
            rows, inputs = shapes[position][::-1] if turned else shapes[position]
            for gates in RECURRENT:
                units = rows // gates
                loop = (units, rows) if turned else (rows, units)
                others = [i for i in order if shapes[i] == loop and i != position]
                if rows % gates or units < _LEAST or inputs in {1, units} or not others:
                    continue
                found.append(_Cell(position, gates, turned, (), tuple(others[:MOST_LOOPS])))
    return found[:MOST_CELLS]


def _named_cells(tensors: Sequence[CanonicalTensor], shapes: Mapping[int, tuple[int, ...]]) -> list[_Cell]:
    stacks: dict[tuple[str, str], dict[int, dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
    for position in shapes:
        told = _NAMED.fullmatch(tensors[position].name)
        if told is not None:
            stem, part, level, direction = told.groups()
            stacks[stem, direction or ""][int(level)][part] = position
    found = []
    for levels in stacks.values():
        cells = [levels[level] for level in range(len(levels)) if len(levels.get(level, {})) == 2]
        if not cells:
            continue
        rows, units = shapes[cells[0]["hh"]]
        if units < _LEAST or rows % units or rows // units not in RECURRENT or shapes[cells[0]["ih"]][0] != rows:
            continue
        above = [cell for cell in cells[1:] if shapes[cell["ih"]] == shapes[cell["hh"]] == (rows, units)]
        pairs = ((-1, cells[0]["hh"]), *((cell["ih"], cell["hh"]) for cell in above))
        found.append(_Cell(cells[0]["ih"], rows // units, False, pairs, ()))
    return found[:MOST_CELLS]


def _table(tensors: Sequence[CanonicalTensor], usable: Sequence[int], cell: _Cell) -> int | None:
    """The embeddings that a cell reads: the longest table as wide as its inputs."""
    rows, width = tensors[cell.matrix].view.shape[:: -1 if cell.turned else 1]
    options = [i for i in usable if len(tensors[i].view.shape) == 2 and tensors[i].view.shape[1] == width]
    longest = max((i for i in options if i != cell.matrix), key=lambda i: tensors[i].view.shape[0], default=None)
    if longest is None or tensors[longest].view.shape[0] <= max(rows, 2 * width):
        return None
    return longest


def _roles(tensors: Sequence[CanonicalTensor], usable: Sequence[int], *, suspect: bool) -> dict[int, Role]:
    """Embeddings that cells read, and the table with as many rows, which predicts tokens."""
    found: dict[int, Role] = {}
    for cell in _cells(tensors, usable, suspect=suspect):
        table = _table(tensors, usable, cell)
        if table is None:
            continue
        found[table] = Role.TOKEN_EMBEDDING
        rows = tensors[table].view.shape[0]
        heads = [i for i in usable if tensors[i].view.shape[0] == rows and i not in found]
        found |= dict.fromkeys(heads, Role.OUTPUT_HEAD)
    return found


# --- convolutions -----------------------------------------------------------------------------------------------


def _convolutional(
    tensors: Sequence[CanonicalTensor], usable: Sequence[int], count: int, parameters: Parameters
) -> Iterator[NeuronSample]:
    """Units of the second to the fifth layer of each chain of convolutions from the network's input."""
    kernels = {i: tensors[i].view.shape for i in usable if len(tensors[i].view.shape) in {3, 4}}
    if len(kernels) < 2:
        return
    ends = {i: tensors[i].view.shape for i in usable if len(tensors[i].view.shape) == 2}
    norms = _batch_norms(tensors)
    for chain in _chains(tensors, kernels):
        maps = [_map(tensors, position, norms) for position in chain]
        composed = maps[0].kernel
        for place in range(1, len(maps)):
            high, wide = maps[place].kernel.shape[2:]
            _, inputs, a, b = composed.shape
            if len(maps[place].kernel) * inputs * (a + high - 1) * (b + wide - 1) > MOST_COMPOSED:
                break
            composed = _compose(maps[place].kernel, *_unit(composed))
            units, lengths = _unit(composed)
            following = _following(maps, place, units, lengths, tensors, ends)
            if len(units) < _LEAST or following is None:
                continue
            down, position = following
            gate = units.reshape(len(units), -1)
            indices = _chosen(len(units), count, parameters)
            yield NeuronSample(
                layer=None,
                expert=None,
                frame=Frame.UNITS,
                activation="",
                size=len(units),
                tensors=(maps[place].position, -1, position),
                indices=indices,
                gate=_projected(gate, parameters)[indices],
                up=None,
                down=_projected(down, parameters)[indices],
            )


def _projected(rows: Float64, parameters: Parameters) -> Float32:
    """Unit rows less what all of them share, in random directions."""
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    centred = unit - unit.mean(axis=0)
    return (centred @ _directions(rows.shape[1], parameters)).astype(np.float32)


def _unit(composed: Float64) -> tuple[Float64, Float64]:
    lengths = np.maximum(np.linalg.norm(composed.reshape(len(composed), -1), axis=1), 1e-30)
    return composed / lengths[:, None, None, None], lengths


def _compose(kernel: Float64, units: Float64, lengths: Float64) -> Float64:
    """What a kernel (out, in, h, w) makes of the units (in, c, a, b) in front of it: (out, c, a + h - 1, b + w - 1)."""
    out, _, high, wide = kernel.shape
    _, inputs, a, b = units.shape
    scaled = kernel * lengths[:, None, None]
    found = np.zeros((out, inputs, a + high - 1, b + wide - 1))
    flat = units.reshape(len(units), -1)
    for row in range(high):
        for column in range(wide):
            found[:, :, row : row + a, column : column + b] += (scaled[:, :, row, column] @ flat).reshape(
                out, inputs, a, b
            )
    return found


def _following(
    maps: Sequence[_Map],
    place: int,
    units: Float64,
    lengths: Float64,
    tensors: Sequence[CanonicalTensor],
    ends: Mapping[int, tuple[int, ...]],
) -> tuple[Float64, int] | None:
    """What follows each unit, (units, anything): the next layer's composition, or the classifier's own numbers."""
    if place + 1 < len(maps):
        return _opposite(maps[place + 1].kernel, units, lengths), maps[place + 1].position
    for position, shape in ends.items():
        if shape[1] % len(units) == 0 and shape[1] >= len(units) > shape[0]:
            matrix = _read(tensors[position])
            return matrix.reshape(shape[0], len(units), -1).transpose(1, 0, 2).reshape(len(units), -1), position
    return None


def _opposite(kernel: Float64, units: Float64, lengths: Float64) -> Float64:
    """For each unit and tap the next layer's compositions, weighted by how much they read of it, less its own share.

    Its own share would make any two networks agree that have similar units.
    """
    out, inputs, high, wide = kernel.shape
    scaled = kernel * lengths[:, None, None]
    whole = _compose(kernel, units, lengths)
    size = np.maximum(np.linalg.norm(whole.reshape(out, -1), axis=1), 1e-30)
    scaled = scaled / np.maximum(np.linalg.norm(scaled.reshape(out, -1), axis=1), 1e-30)[:, None, None, None]
    weights = scaled.reshape(out, inputs, -1)
    found: Float64 = np.einsum("rit,rd->itd", weights, (whole / size[:, None, None, None]).reshape(out, -1))
    ratio = lengths[None, :, None] * kernel.reshape(out, inputs, -1) / size[:, None, None]
    own = np.einsum("rit,ris->its", weights, ratio)  # how much of the unit, at each tap, is in its own sum
    _, channels, a, b = units.shape
    shifted = np.zeros((inputs, high * wide, channels, a + high - 1, b + wide - 1))
    for tap in range(high * wide):
        row, column = divmod(tap, wide)
        shifted[:, tap, :, row : row + a, column : column + b] = units
    found -= np.einsum("its,isd->itd", own, shifted.reshape(inputs, high * wide, -1))
    return found.reshape(inputs, -1)


def _map(tensors: Sequence[CanonicalTensor], position: int, norms: Mapping[str, tuple[int, int]]) -> _Map:
    kernel = _read(tensors[position])
    kernel = kernel[:, :, None] if kernel.ndim == 3 else kernel
    return _Map(position, kernel * _factors(tensors, position, kernel, norms)[:, None, None, None])


def _factors(
    tensors: Sequence[CanonicalTensor], position: int, kernel: Float64, norms: Mapping[str, tuple[int, int]]
) -> Float64:
    """What a batch norm multiplies each output by: by name, or where its four vectors are the only ones so long."""
    size = len(kernel)
    pair = next((norms[stem] for stem in _norm_stems(tensors[position].name) if stem in norms), None)
    if pair is not None and all(tensors[one].view.shape == (size,) for one in pair):
        gain, variance = (_vector(tensors[one]) for one in pair)
        return gain / np.sqrt(np.maximum(variance, 0.0) + _EPSILON)
    vectors = [_vector(one) for one in tensors if one.view.shape == (size,)]
    positive = [one for one in vectors if one.min(initial=1.0) > 0]
    if norms or len(vectors) != 4 or len(positive) != 2:
        return np.ones(size)
    # The variance goes with the lengths of the rows in front of the norm.
    lengths = np.log(np.maximum(row_norms(kernel.reshape(size, -1).astype(np.float32)), 1e-30))
    likeness = [abs(float(np.corrcoef(np.log(one), lengths)[0, 1])) if one.std() > 0 else 0.0 for one in positive]
    variance, gain = positive if likeness[0] >= likeness[1] else positive[::-1]
    return gain / np.sqrt(variance + _EPSILON)


def _vector(tensor: CanonicalTensor) -> Float64:
    values = to_float32(tensor.view.read(0, tensor.view.shape[0])).astype(np.float64)
    return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


def _batch_norms(tensors: Sequence[CanonicalTensor]) -> dict[str, tuple[int, int]]:
    """Positions of gain and variance of the batch norms that have names, by module."""
    names = {tensor.name: position for position, tensor in enumerate(tensors) if len(tensor.view.shape) == 1}
    found = {}
    for name, position in names.items():
        for variance, gain in (("running_var", "weight"), ("moving_variance", "gamma")):
            stem = name.removesuffix(f".{variance}")
            if stem != name and f"{stem}.{gain}" in names:
                found[stem] = (names[f"{stem}.{gain}"], position)
    return found


def _norm_stems(name: str) -> Iterator[str]:
    """Names that the norm behind a convolution of that name usually has: ``bn1`` behind ``conv1``, 1 behind 0."""
    stem = name.removesuffix(".weight").removesuffix(".kernel")
    head, _, last = stem.rpartition(".")
    prefix = f"{head}." if head else ""
    for old, new in (("conv", "bn"), ("conv", "norm"), ("conv", "batch_norm"), ("conv", "batchnorm")):
        if old in last:
            yield prefix + last.replace(old, new)
    if last.isdigit():
        yield f"{prefix}{int(last) + 1}"
    yield f"{stem}.bn"
    yield f"{prefix}bn"


def _chains(tensors: Sequence[CanonicalTensor], kernels: Mapping[int, tuple[int, ...]]) -> list[list[int]]:
    """Chains of convolutions from the network's input, each reading as many channels as the last one puts out.

    In the order of their names where these have numbers; all that shapes allow, up to a bound, where they do not.
    """
    order = sorted(kernels, key=lambda position: _natural(tensors[position].name))
    produced = {shape[0] for shape in kernels.values()}
    starts = [i for i in order if kernels[i][1] <= _MOST_INPUTS and kernels[i][1] not in produced]
    found: list[list[int]] = []

    def extend(chain: list[int]) -> None:
        following = [i for i in order if i not in chain and kernels[i][1] == kernels[chain[-1]][0]]
        if len(found) >= MOST_CHAINS:
            return
        if not following or len(chain) > DEEPEST:
            found.append(chain)
            return
        for one in following[:MOST_CHAINS]:
            extend([*chain, one])

    for start in starts[:2]:
        extend([start])
    return [chain for chain in found if len(chain) > 1]


def _natural(name: str) -> tuple[tuple[int, str], ...]:
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name))
