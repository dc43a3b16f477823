"""Well-formed checkpoints that are hostile to the measuring: no crash, no warning, bounded memory, right verdicts."""

from __future__ import annotations

import json
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fingerprint.assemble import fingerprint
from fingerprint.checkpoint import open_checkpoint
from fingerprint.comparing.matching import SketchCosines
from fingerprint.gauge.project import project_centred
from fingerprint.measure import measure_tensor, row_blocks
from fingerprint.parameters import DEFAULT_PARAMETERS as P
from fingerprint.readers.base import StoredTensor
from fingerprint.signs import MOST_KEPT, Stream, bits, sample_indices, sign_block, sign_matrix
from fingerprint.sketch import MatrixSketcher
from fingerprint.tensors import Transposed
from fingerprint.units import first_of, ordered_units
from fingerprint.vocabulary import Content, Frame
from signatures.registry import Registry
from signatures.report import Report, Verdict
from signatures.scan import scan_path
from signatures.signature import sign
from tests.small_models import Weights, model, save

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fingerprint.records import Fingerprint

    Array = np.ndarray[Any, Any]

MEMORY = 200 << 20
LARGEST = float(np.finfo(np.float32).max)


def slug(name: str) -> str:
    return "hostile/" + name.replace(" ", "-").replace(",", "")


def every(change: Callable[[Array], Array]) -> Callable[[], Weights]:
    """The registered model with ``change`` applied to (a copy of) each tensor."""
    return lambda: {name: change(value.copy()) for name, value in model(1).items()}


def put(value: float, where: Any) -> Callable[[Array], Array]:
    def change(array: Array) -> Array:
        array[where] = value
        return array

    return change


def every_third(first: float, second: float) -> Callable[[Array], Array]:
    def change(array: Array) -> Array:
        array.reshape(-1)[::3], array.reshape(-1)[1::3] = first, second
        return array

    return change


def one_giant(value: float) -> Callable[[Array], Array]:
    def change(array: Array) -> Array:
        array.reshape(-1)[array.size // 2] = value
        return array

    return change


def alike(axis: int) -> Callable[[Array], Array]:
    return lambda array: (
        np.ascontiguousarray(np.broadcast_to(np.take(array, [0], axis=axis - 2 + array.ndim), array.shape))
        if array.ndim == 2
        else array
    )


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0, 0.05, shape).astype(np.float32)


FOUND = {
    "scaled up to 1e18": every(lambda a: a * np.float32(1e20)),
    "scaled down to 1e-31": every(lambda a: a * np.float32(1e-30)),
    "denormal": every(lambda a: a * np.float32(1e-41)),
    "a row of NaN": every(put(np.nan, 0)),
    "a row of infinities": every(put(np.inf, 0)),
    "a third infinite": every(every_third(np.inf, 0.0)),
    "doubles": every(lambda a: a.astype(np.float64) * (1 + 1e-9)),
}
"""Changes of the registered model under which it must still be found."""

ABSTAINS = {
    "NaN everywhere": every(lambda a: np.full_like(a, np.nan)),
    "infinities everywhere": every(lambda a: np.full_like(a, -np.inf)),
    "mostly NaN": every(every_third(np.nan, np.inf)),
    "as large as float32 goes": every(lambda a: a / np.abs(a).max() * np.float32(LARGEST)),
    "doubles beyond float32": every(lambda a: a.astype(np.float64) * 1e300),
    "doubles below float32": every(lambda a: a.astype(np.float64) * 1e-300),
    "negative zeros": every(lambda a: -np.zeros_like(a)),
    "equal rows": every(alike(0)),
    "equal columns": every(alike(1)),
    "complex": lambda: {f"t{i}": (noise(64, 64) + 1j * noise(64, 64, seed=1)).astype(np.complex64) for i in range(3)},
    "integers": lambda: {
        f"t{i}": np.random.default_rng(i).integers(-128, 128, (96, 64), dtype=np.int8) for i in range(9)
    },
    "empty axes": lambda: {"a": np.zeros((3, 0, 5), np.float32), "b": np.zeros((0, 9), np.float32)},
    "scalars": lambda: {f"model.layers.{i}.w": np.full((), i, np.float32) for i in range(500)},
}
"""Nothing of weights is left here: neither found nor cleared."""

CLEARED = {
    "another model, huge": lambda: {name: value * np.float32(1e20) for name, value in model(9).items()},
    "another model, tiny": lambda: {name: value * np.float32(1e-30) for name, value in model(9).items()},
    "another model, denormal": lambda: {name: value * np.float32(1e-41) for name, value in model(9).items()},
    "equal rows but one": lambda: {
        name: np.concatenate([value[:1], np.broadcast_to(value[:1], value.shape)[1:]]) + (value > 0.2)
        if value.ndim == 2
        else value
        for name, value in model(9).items()
    },
    "names that look alike": lambda: {
        name: noise(64, 64, seed=i) for i, name in enumerate(("a.w", "A.w", "\u00e1.w", "a\u0301.w", "a.w\u200b"))
    },
    "sixteen axes": lambda: {"w": noise(*[2] * 15, 3)},
    "a giant in each": lambda: {name: one_giant(1e12)(value.copy()) for name, value in model(9).items()},
    "the largest float in each": lambda: {name: one_giant(LARGEST)(value.copy()) for name, value in model(9).items()},
}
"""Unrelated: never at ``possible``."""


def registered(registry: Registry, weights: Weights, name: str, folder: Path) -> None:
    with open_checkpoint(save(weights, folder / "registered.safetensors")) as checkpoint:
        registry.register(sign(fingerprint(checkpoint)), name=name)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Two plain models."""
    folder = tmp_path_factory.mktemp("plain")
    with Registry.open(folder / "registry", create=True) as opened:
        registered(opened, model(1), "a/one", folder)
        registered(opened, model(2), "a/two", folder)
        yield opened


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry with every hostile model in it, and one plain one."""
    folder = tmp_path_factory.mktemp("poisoned")
    with Registry.open(folder / "registry", create=True) as opened:
        for group in (FOUND, ABSTAINS, CLEARED):
            for name, make in group.items():
                registered(opened, make(), slug(name), folder)
        registered(opened, model(2), "a/two", folder)
        yield opened


def scan(registry: Registry, weights: Weights, folder: Path) -> Report:
    report = scan_path(registry, save(weights, folder / "suspect.safetensors"))
    json.dumps(report.to_json(), allow_nan=False)
    return report


@pytest.mark.parametrize("name", FOUND)
def test_strange_values_do_not_hide_a_relative(name: str, registry: Registry, tmp_path: Path) -> None:
    report = scan(registry, FOUND[name](), tmp_path)
    assert report.verdict is Verdict.MATCH
    assert [match.model for match in report.matches] == ["a/one"]


@pytest.mark.parametrize("name", ABSTAINS)
def test_where_no_weights_are_left_the_verdict_is_inconclusive(name: str, registry: Registry, tmp_path: Path) -> None:
    report = scan(registry, ABSTAINS[name](), tmp_path)
    assert report.verdict in {Verdict.INCONCLUSIVE, Verdict.POSSIBLE}
    # Gains that were left as they are may still be equal.
    assert {match.model for match in report.matches} <= {"a/one"}


@pytest.mark.parametrize("name", CLEARED)
def test_strange_values_do_not_make_a_relative(name: str, registry: Registry, tmp_path: Path) -> None:
    report = scan(registry, CLEARED[name](), tmp_path)
    assert report.verdict is Verdict.NO_MATCH
    assert report.matches == ()


def test_hostile_models_that_were_registered_neither_spoil_nor_catch(poisoned: Registry, tmp_path: Path) -> None:
    copy = scan(poisoned, model(2), tmp_path)
    assert [match.model for match in copy.matches] == ["a/two"]
    assert scan(poisoned, model(3), tmp_path).verdict is Verdict.NO_MATCH


@pytest.mark.parametrize("name", [*FOUND, *CLEARED])
def test_a_hostile_model_finds_itself(name: str, poisoned: Registry, tmp_path: Path) -> None:
    weights = (FOUND | CLEARED)[name]()
    report = scan(poisoned, weights, tmp_path)
    assert slug(name) in {one for match in report.matches for one in (match.model, *match.aliases)}


def test_many_copies_of_one_registered_tensor_are_matched_in_little_memory(registry: Registry, tmp_path: Path) -> None:
    gate = model(1)["model.layers.0.mlp.gate_proj.weight"]
    report = scan(registry, {f"t{i}": gate for i in range(400)}, tmp_path)
    assert [match.model for match in report.matches] == ["a/one"]


# --- shapes ---------------------------------------------------------------------------------------------------------


class Bytes:
    """A source of bytes that repeat."""

    def __init__(self) -> None:
        self.largest = 0
        self._bytes = np.random.default_rng(0).integers(0, 120, 1 << 20, dtype=np.uint8).tobytes()

    def read(self, offset: int, size: int) -> memoryview:
        self.largest = max(self.largest, size)
        start = offset % len(self._bytes)
        count = -(-(start + size) // len(self._bytes))
        return memoryview(self._bytes * count)[start : start + size]


def view(*shape: int) -> tuple[StoredTensor, Bytes]:
    from fingerprint.dtypes import DTYPES

    source = Bytes()
    return StoredTensor("w", DTYPES["F8_E4M3"], shape, source, 0), source  # type: ignore[arg-type]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shape", [(2, 2_500_000), (2_500_000, 2), (1, 5_000_000), (5_000_000, 1), (3, 5_000_000)])
def test_long_axes_are_measured_in_pieces(shape: tuple[int, int], turned: bool) -> None:
    tensor, source = view(*shape)
    tracemalloc.start()
    try:
        measured = measure_tensor(Transposed(tensor, "w") if turned else tensor, P, casts=False, norms=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MEMORY
    assert source.largest <= 1 << 24
    long = max(shape) > 1 << 22
    assert measured.content is (Content.VECTOR if 1 in shape else Content.SMALL if long else Content.WEIGHTS)


def test_many_axis_lengths_share_their_signs() -> None:
    sign_matrix(P.seed, Stream.SKETCH, MOST_KEPT, 32)
    tracemalloc.start()
    try:
        held = [sign_matrix(P.seed, Stream.SKETCH, MOST_KEPT - i, 32) for i in range(100)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert all(np.shares_memory(held[0], one) for one in held)
    assert peak < 1 << 20


def test_signs_beyond_what_is_kept_are_the_same_signs() -> None:
    start, stop = MOST_KEPT - 5, MOST_KEPT + 5
    word = bits(P.seed, Stream.SLICE, start, stop)
    expected = np.where((word[:, None] >> np.arange(16, dtype=np.uint64)) & np.uint64(1), 1.0, -1.0)
    np.testing.assert_array_equal(sign_block(P.seed, Stream.SLICE, start, stop, 16), expected)
    np.testing.assert_array_equal(sign_block(P.seed, Stream.SLICE, start, MOST_KEPT, 16), expected[:5])


def test_samples_of_long_axes_are_those_of_one_sort() -> None:
    size = (1 << 20) + 12345
    least = np.sort(np.argsort(bits(P.seed, Stream.PROBE, 0, size))[:24])
    np.testing.assert_array_equal(sample_indices(P.seed, Stream.PROBE, size, 24), least)


@pytest.mark.parametrize("shape", [(90, 200), (150, 150)])
def test_a_sketch_does_not_depend_on_how_rows_are_cut(shape: tuple[int, int]) -> None:
    values = noise(*shape)
    whole, pieces = MatrixSketcher(*shape, P), MatrixSketcher(*shape, P)
    whole.update(0, values)
    for row in range(shape[0]):
        for first in range(0, shape[1], 61):
            pieces.update(row, values[row : row + 1, first : first + 61], first)
    for one, other in ((whole.finish(), pieces.finish()),):
        for a, b in ((one.whole, other.whole), (one.rows, other.rows), (one.columns, other.columns)):
            np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max())


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_slices_in_a_frame_follow_their_definition(columns: bool, turned: bool, tmp_path: Path) -> None:
    values = noise(300, 200)
    with open_checkpoint(save({"w": values}, tmp_path / "w.safetensors")) as checkpoint:
        tensor = Transposed(checkpoint.tensors[0], "w") if turned else checkpoint.tensors[0]
        exact = (values.T if turned else values).astype(np.float64)
        slices = (exact.T if columns else exact)[[3, 50, 199]]
        frame = sign_matrix(P.seed, Stream.FRAME, slices.shape[1], 64)
        found = project_centred(tensor, np.array([3, 50, 199]), frame.T, columns=columns)
        np.testing.assert_allclose(found, (slices - slices.mean(axis=1, keepdims=True)) @ frame, atol=1e-5)


@pytest.mark.parametrize("shape", [(7, 300_001), (300_001, 7), (4096, 64), (5,), ()])
@pytest.mark.parametrize("turned", [False, True])
def test_blocks_cover_a_tensor_in_order(shape: tuple[int, ...], turned: bool) -> None:
    tensor, _ = view(*shape)
    if turned and len(shape) != 2:
        pytest.skip("only matrices turn")
    whole = tensor.read(0, int(np.prod(shape))).view(np.uint8)
    whole = whole.reshape(shape).T.reshape(-1) if turned else whole
    pieces = [block.reshape(-1) for _, _, block in row_blocks(Transposed(tensor, "w") if turned else tensor)]
    np.testing.assert_array_equal(np.concatenate(pieces).view(np.uint8), whole)


# --- numbers of tensors ---------------------------------------------------------------------------------------------


def fingerprint_of(weights: Weights, folder: Path) -> Fingerprint:
    with open_checkpoint(save(weights, folder / "many.safetensors")) as checkpoint:
        return fingerprint(checkpoint, casts=False)


def test_sketches_of_many_tensors_are_compared_as_all_pairs_say(tmp_path: Path) -> None:
    shapes = [(40, 64), (64, 40), (64, 64), (50, 64), (48, 30), (90, 50)]
    ours = fingerprint_of({f"o{i}": noise(*shapes[i % 5], seed=i) for i in range(23)}, tmp_path).tensors
    theirs = fingerprint_of({f"t{i}": noise(*shapes[i % 6], seed=i + 9) for i in range(31)}, tmp_path).tensors
    found = SketchCosines.of(ours, theirs)
    dense = found.scores
    assert found.largest == dense.max()
    for row in range(len(theirs)):
        assert found.best_scores[row] == dense[row].max()
        assert found.best[row] == (dense[row].argmax() if dense[row].max() > 0 else -1)
        for column in range(len(ours)):
            assert found.at(row, column).score == pytest.approx(dense[row, column], rel=1e-4, abs=1e-6)
    for column in range(len(ours)):
        best = np.sort(dense[:, column])[::-1][: len(found.leads)]
        kept = [dense[row, column] if row >= 0 else 0.0 for row in found.leads[:, column]]
        np.testing.assert_array_equal(kept, best)


def test_of_many_parts_those_of_the_first_units_are_kept() -> None:
    units = [(layer, expert) for layer in range(4) for expert in (-1, *range(50))]
    kept = {units[position] for position in first_of(units, 24)}
    assert {unit for unit in units if unit[1] < 0} <= kept
    assert [sum(unit[0] == layer for unit in kept) for layer in range(4)] == [6, 6, 6, 6]
    assert first_of(units, len(units)) == set(range(len(units)))
    assert kept == set(ordered_units(units)[:24])
    shuffled = [units[i] for i in np.random.default_rng(0).permutation(len(units))]
    assert {shuffled[position] for position in first_of(shuffled, 24)} == kept


def test_a_fingerprint_keeps_what_its_limits_allow_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fingerprint.assemble.MOST_SKETCHED", 20)
    monkeypatch.setattr("fingerprint.assemble.MOST_SAMPLED", 9)
    monkeypatch.setattr("fingerprint.assemble.MOST_MLPS", 2)
    made = fingerprint_of(model(1), tmp_path)
    assert sum(record.sketch is not None for record in made.tensors) == 20
    assert sum(bool(record.axes) for record in made.tensors) == 9
    assert [sample.frame for sample in made.neurons] == [Frame.FIXED] * 2 + [Frame.ANCHORS] * 2 + [Frame.SELF] * 2
    assert "sketches-sampled" in dict(made.findings)
    assert all(record.digest for record in made.tensors)
