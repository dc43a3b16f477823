"""Full and deep looks at a suspect: what each samples, and what a scan says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from msgspec.structs import replace

from fingerprint.assemble import deepened, measure_checkpoint
from fingerprint.checkpoint import open_checkpoint
from fingerprint.errors import MalformedFileError, RegistryBrokenError
from fingerprint.gauge import sample as gauge
from fingerprint.parameters import DEFAULT_PARAMETERS as P
from fingerprint.units import spread
from fingerprint.vocabulary import Depth, Frame
from signatures import scan, suspect
from signatures.options import ScanOptions
from signatures.registry import Registry
from signatures.report import Verdict
from signatures.scan import scan_path
from signatures.signature import sign
from tests.small_models import model, save

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fingerprint.assemble import Measured
    from fingerprint.records import Fingerprint, NeuronSample


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(model(1), tmp_path_factory.mktemp("depths") / "model.safetensors")


@pytest.fixture(scope="module")
def looks(path: Path) -> dict[Depth, Measured]:
    with open_checkpoint(path) as checkpoint:
        full = measure_checkpoint(checkpoint, casts=False, deep=False)
        return {Depth.FULL: full, Depth.DEEP: measure_checkpoint(checkpoint, casts=False)}


@pytest.fixture(scope="module")
def registry(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry.open(tmp_path_factory.mktemp("depths") / "registry") as opened, open_checkpoint(path) as checkpoint:
        opened.register(sign(measure_checkpoint(checkpoint).fingerprint), name="a/model")
        yield opened


def in_frame(fingerprint: Fingerprint, frame: Frame) -> list[NeuronSample]:
    return [sample for sample in fingerprint.neurons if sample.frame == frame]


def test_a_deep_look_goes_on_from_a_full_one(looks: dict[Depth, Measured], path: Path) -> None:
    full, deep = looks[Depth.FULL].fingerprint, looks[Depth.DEEP].fingerprint
    assert (full.depth, deep.depth) == (Depth.FULL, Depth.DEEP)
    assert not in_frame(full, Frame.SELF)
    assert in_frame(deep, Frame.SELF)
    assert all(sample.indices.size == sample.size for sample in in_frame(deep, Frame.ANCHORS))
    assert [one.digest for one in full.tensors] == [one.digest for one in deep.tensors]


def test_what_was_registered_has_no_deeper_look(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        registered = measure_checkpoint(checkpoint)
    assert registered.fingerprint.depth == Depth.FULL
    assert in_frame(registered.fingerprint, Frame.SELF)


def test_neurons_that_are_sampled_are_those_of_a_whole_projection(
    looks: dict[Depth, Measured], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"MOST_NEURONS": 0, "LEAST_OF_ONE": 33, "WHOLE_NUMBERS": 0, "WHOLE_SHARE": 1 << 20}.items():
        monkeypatch.setattr(gauge, name, value)
    monkeypatch.setattr(gauge, "spread", lambda number, count: set())
    with open_checkpoint(path) as checkpoint:
        few = measure_checkpoint(checkpoint, parameters=replace(P, gauge_samples=16), casts=False, deep=False)
        deeper = deepened(few).fingerprint
    samples, whole = in_frame(few.fingerprint, Frame.ANCHORS), in_frame(looks[Depth.DEEP].fingerprint, Frame.ANCHORS)
    assert samples
    for some, every in zip(samples, whole, strict=True):
        assert some.indices.size == 33 < some.size
        for ours, theirs in ((some.gate, every.gate), (some.up, every.up), (some.down, every.down)):
            assert ours is not None
            assert theirs is not None
            np.testing.assert_allclose(ours, theirs[some.indices], atol=1e-4 * float(np.abs(theirs).max()))
    # A full look at a deeper network than this keeps vectors of some layers alone; a deep one of all.
    circuits = [gram for gram in few.fingerprint.grams if gram.circuit == "down-up"]
    again = [gram for gram in deeper.grams if gram.circuit == "down-up" and gram.frame != Frame.SELF]
    assert not circuits
    assert len(again) == len(whole)


@pytest.mark.parametrize(("number", "count"), [(1, 2), (5, 2), (72, 9), (3, 3), (7, 100)])
def test_layers_are_spread_over_the_whole_depth(number: int, count: int) -> None:
    found = spread(number, count)
    assert len(found) == min(number, count)
    assert {0, number - 1} <= found <= set(range(number))


def test_the_report_says_how_deep_it_looked(registry: Registry, path: Path, tmp_path: Path) -> None:
    stranger = save(model(7), tmp_path / "stranger.safetensors")
    own = "layers in their own frames"
    full = scan_path(registry, path, options=ScanOptions(depth="full"))
    assert full.suspect.depth == Depth.FULL
    assert any(own in one for one in full.power.not_tested)
    assert scan_path(registry, path).suspect.depth == Depth.FULL
    deep = scan_path(registry, stranger)
    assert deep.suspect.depth == Depth.DEEP
    assert not deep.matches
    assert not any(own in one for one in deep.power.not_tested)


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (MalformedFileError("gone", path="m"), "m: gone"),
        (MemoryError(), "MemoryError"),
        (ValueError("from a library"), "ValueError: from a library"),
    ],
)
def test_a_match_stands_if_the_look_that_goes_deeper_fails(
    failure: Exception, said: str, path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(measured: Measured) -> Measured:
        raise failure

    monkeypatch.setattr(scan, "_explains", lambda match: False)
    monkeypatch.setattr(suspect, "deepened", fails)
    report = scan_path(registry, path)
    assert (report.verdict, report.error, report.suspect.complete) == (Verdict.MATCH, None, False)
    assert any("at deep depth failed" in note and note.endswith(said) for note in report.notes)


@pytest.mark.parametrize("failure", [MalformedFileError("gone", path="m"), MemoryError()])
def test_a_look_that_fails_is_an_error_where_nothing_was_found_before(
    failure: Exception, path: Path, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(measured: Measured) -> Measured:
        raise failure

    monkeypatch.setattr(suspect, "deepened", fails)
    stranger = save(model(8), tmp_path / "stranger.safetensors")
    for wanted, depth in ((path, Depth.DEEP.value), (stranger, suspect.AUTO)):
        report = scan_path(registry, wanted, options=ScanOptions(depth=depth))
        assert report.verdict is Verdict.ERROR
        assert report.error
        assert ("not enough memory" in report.error) is isinstance(failure, MemoryError)


def test_a_registry_that_breaks_between_two_looks_is_not_hidden(
    path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(measured: Measured) -> Measured:
        raise RegistryBrokenError("a file is gone")

    monkeypatch.setattr(scan, "_explains", lambda match: False)
    monkeypatch.setattr(suspect, "deepened", fails)
    with pytest.raises(RegistryBrokenError):
        scan_path(registry, path)
