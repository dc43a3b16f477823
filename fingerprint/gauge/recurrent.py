"""Units of LSTM and GRU cells in the space of the network's input, with the coins that their candidate gates have.

A unit's candidate row and whatever reads its state may be negated together, since tanh is odd: a coin, as a neuron of a
gated MLP has one (``comparing.coins``). The rows of the other gates do not see it. Matrices further up are composed
with the candidate gates below them, so that neither the order of units nor their signs show.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct

from fingerprint.gauge.frames import make_frames
from fingerprint.gauge.unit_rows import choose_units, natural_order, read_whole, spread_directions
from fingerprint.records import NeuronSample
from fingerprint.vectors import unit_rows
from fingerprint.vocabulary import Frame, Role

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
LEAST_UNITS: Final = 16
MOST_CELLS: Final = 4
MOST_LOOPS: Final = 5
_HEADS: Final = ("decoder", "head", "out", "proj", "softmax", "classif")
_NAMED: Final = re.compile(r"(.*)weight_(ih|hh)_l(\d{1,3})(_reverse)?")


class _Cell(Struct, frozen=True):
    """The matrix that reads the network's input, (gates * units, inputs), and (gates * units, units) beside it.

    ``levels`` are input and loop matrices of the levels above, the first pair being this cell's loop alone; empty where
    names do not tell, and ``others`` are then all matrices that may be one of them. ``turned``: stored as (in, out).
    """

    matrix: int
    gates: int
    turned: bool
    levels: tuple[tuple[int, int], ...]
    others: tuple[int, ...]


class _Rows(Struct, frozen=True):
    """Rows (gates * units, inputs) of one matrix in the space of the network's input; whether its units have coins."""

    position: int
    rows: Float64
    coins: bool


def recurrent_samples(
    tensors: Sequence[CanonicalTensor], usable: Sequence[int], count: int, parameters: Parameters, *, suspect: bool
) -> Iterator[NeuronSample]:
    """Units of recurrent cells in fixed directions of the network's input, and in those of its embeddings."""
    for cell in _cells(tensors, usable, suspect=suspect):
        width = tensors[cell.matrix].view.shape[0 if cell.turned else 1]
        # One of a registered model: in two frames its coins would count twice.
        found = _tables(tensors, usable, cell)[: 2 if suspect else 1]
        tables = [(Frame.ANCHORS, tensors[table].view) for table in found]
        views = [(Frame.FIXED, spread_directions(width, parameters))]
        views += [(Frame.UNITS, frame.directions.T) for frame in make_frames(tables, parameters, centred=False)]
        for one in _in_input_space(tensors, cell):
            for name, directions in views:
                yield _unit_sample(one, cell.gates, name, directions, count, parameters)


def _unit_sample(
    found: _Rows, gates: int, frame: Frame, directions: Float64, count: int, parameters: Parameters
) -> NeuronSample:
    """A unit as a neuron: the other gates in place of its gate, the candidate's row in place of up, nothing of down."""
    rows = (found.rows @ directions).reshape(gates, -1, directions.shape[1])
    rows -= rows.mean(axis=1, keepdims=True)
    width = rows.shape[2]
    mixing = spread_directions(width * gates, parameters).reshape(gates, width, -1)
    even = np.zeros(rows.shape[1:], np.float32)
    for gate in range(gates):
        if gate != CANDIDATE:
            even += (unit_rows(rows[gate].astype(np.float32)) @ mixing[gate]).astype(np.float32)
    indices = choose_units(rows.shape[1], count, parameters)
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
    """Every matrix of a stack of cells, composed with the candidate gates in front, so that order and signs cancel.

    A loop's rows have the coins of the rows beside it, which count once.
    """

    def read(position: int) -> Float64:
        matrix = read_whole(tensors[position])
        return matrix.T if cell.turned else matrix

    def candidate(rows: Float64) -> Float64:
        part = rows.reshape(cell.gates, -1, rows.shape[1])[CANDIDATE]
        scaled: Float64 = part / max(float(np.abs(part).max()), 1e-30)
        return scaled

    first = read(cell.matrix)
    # Shapes alone do not tell a cell from other blocks, whose signs may be no coins.
    yield _Rows(cell.matrix, first, coins=bool(cell.levels))
    front = candidate(first)
    if cell.levels:
        for matrix, loop in cell.levels:
            if matrix >= 0:
                rows = read(matrix) @ front
                yield _Rows(matrix, rows, coins=True)
                front = candidate(rows)
            yield _Rows(loop, read(loop) @ front, coins=False)
        return
    matrices = {other: read(other) for other in cell.others}
    fronts = {}
    for other, whole in matrices.items():
        rows = whole @ front
        fronts[other] = candidate(rows)
        yield _Rows(other, rows, coins=False)
    for other, front in fronts.items():
        for following, whole in matrices.items():
            if following != other:
                yield _Rows(following, whole @ front, coins=False)


def _cells(tensors: Sequence[CanonicalTensor], usable: Sequence[int], *, suspect: bool) -> list[_Cell]:
    """The stacks of cells that names tell of a registered model, and else all that shapes allow, up to a bound.

    Where inputs are as many as units a cell cannot be told from its loop, and every matrix may be the first.
    """
    shapes = {i: tensors[i].view.shape for i in usable if len(tensors[i].view.shape) == 2}
    named = [] if suspect else _named_cells(tensors, shapes)
    if named:
        return named
    found = []
    order = sorted(shapes, key=lambda position: natural_order(tensors[position].name))
    of_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for position in order:
        if len(of_shape[shapes[position]]) <= MOST_LOOPS:  # one more, which may be the cell's own
            of_shape[shapes[position]].append(position)
    for position in order:
        for turned in (False, True):
            rows, inputs = shapes[position][::-1] if turned else shapes[position]
            for gates in RECURRENT:
                units = rows // gates
                loop = (units, rows) if turned else (rows, units)
                others = [i for i in of_shape.get(loop, ()) if i != position]
                if rows % gates or units < LEAST_UNITS or inputs == 1 or not others:
                    continue
                found.append(_Cell(position, gates, turned, (), tuple(others[:MOST_LOOPS])))
    told = [cell for cell in found if tensors[cell.matrix].view.shape != tensors[cell.others[0]].view.shape]
    return (told or found)[:MOST_CELLS]


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
        if units < LEAST_UNITS or rows % units or rows // units not in RECURRENT or shapes[cells[0]["ih"]][0] != rows:
            continue
        above = [cell for cell in cells[1:] if shapes[cell["ih"]] == shapes[cell["hh"]] == (rows, units)]
        pairs = ((-1, cells[0]["hh"]), *((cell["ih"], cell["hh"]) for cell in above))
        found.append(_Cell(cells[0]["ih"], rows // units, False, pairs, ()))
    return found[:MOST_CELLS]


def _tables(tensors: Sequence[CanonicalTensor], usable: Sequence[int], cell: _Cell) -> list[int]:
    """What may be the embeddings that a cell reads: the longest tables as wide as its inputs, by name; at most two."""
    rows, width = tensors[cell.matrix].view.shape[:: -1 if cell.turned else 1]
    options = [i for i in usable if len(tensors[i].view.shape) == 2 and tensors[i].view.shape[1] == width]
    options = [i for i in options if tensors[i].view.shape[0] > max(rows, 2 * width)]
    longest = max((tensors[i].view.shape[0] for i in options), default=0)
    found = [i for i in options if tensors[i].view.shape[0] == longest]
    return sorted(found, key=lambda i: natural_order(tensors[i].name))[:2][:: -1 if _is_head(tensors, found) else 1]


def _is_head(tensors: Sequence[CanonicalTensor], found: Sequence[int]) -> bool:
    """Whether the first of two tables by name is the one that predicts tokens."""
    names = sorted((tensors[i].name.lower() for i in found), key=natural_order)
    return len(names) > 1 and any(word in names[0] for word in _HEADS)


def recurrent_roles(tensors: Sequence[CanonicalTensor], usable: Sequence[int], *, suspect: bool) -> dict[int, Role]:
    """Embeddings that cells read, and the table with as many rows, which predicts tokens."""
    found: dict[int, Role] = {}
    for cell in _cells(tensors, usable, suspect=suspect):
        tables = _tables(tensors, usable, cell)
        if not tables:
            continue
        found[tables[0]] = Role.TOKEN_EMBEDDING
        rows = tensors[tables[0]].view.shape[0]
        heads = [i for i in usable if tensors[i].view.shape[0] == rows and i not in found]
        found |= dict.fromkeys(heads, Role.OUTPUT_HEAD)
    return found
