"""The benchmark of what scans cost, small: the checkpoints that it makes, the registries that it fills, its page."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.torch import load_file

from benchmarks.observed import Observed
from benchmarks.resources import measure, race
from benchmarks.resources.crowd import compared, fill, unrelated
from benchmarks.resources.measure import Row, Scan, Sketch, unregistered
from benchmarks.resources.page import fitted, line, page
from benchmarks.resources.race import Leg, Runner
from benchmarks.resources.shapes import MODELS, Llama
from benchmarks.resources.timing import Cost
from benchmarks.resources.weights import WEIGHTS, bytes_of, write
from benchmarks.synthetic import small_model
from signatures.registry import Registry
from signatures.signature import sign, write_signature

if TYPE_CHECKING:
    from pathlib import Path

TINY = Llama(2, 64, 96, 4, 2, 16, 256)


def test_a_fine_tuned_checkpoint_differs_everywhere_and_is_near(tmp_path: Path):
    for name, seed, moved in (("one", 0, 0.0), ("again", 0, 0.0), ("tuned", 0, 0.02), ("other", 1, 0.0)):
        assert write(tmp_path / name, TINY, seed, moved=moved) > bytes_of(TINY)
    one, again, tuned, other = (load_file(tmp_path / name / WEIGHTS) for name in ("one", "again", "tuned", "other"))
    assert {name: tuple(tensor.shape) for name, tensor in one.items()} == dict(TINY.shapes)
    for name, tensor in one.items():
        assert tensor.equal(again[name])
        assert not tensor.equal(tuned[name])
        if tensor.ndim == 2:
            beside = np.corrcoef([each[name].float().numpy().ravel() for each in (one, tuned, other)])[0]
            assert beside[1] > 0.99
            assert abs(beside[2]) < 0.2


def test_models_that_fill_a_registry_have_a_models_shapes_and_nothing_else_of_it(tmp_path: Path):
    like = small_model(1)
    other = unrelated(like, 2)
    for one, drawn in zip(like.tensors, other.tensors, strict=True):
        assert (one.name, one.shape, one.role, one.content) == (drawn.name, drawn.shape, drawn.role, drawn.content)
        assert one.digest != drawn.digest
        assert len(one.digest) == len(drawn.digest)
        if one.sketch is not None:
            assert np.linalg.norm(drawn.sketch) == pytest.approx(np.linalg.norm(one.sketch), rel=1e-4)
            assert abs(np.corrcoef(one.sketch.ravel(), drawn.sketch.ravel())[0, 1]) < 0.2
    assert all(np.array_equal(a.indices, b.indices) for a, b in zip(like.neurons, other.neurons, strict=True))
    write_signature(tmp_path / "like.fpsig", sign(like))
    fill(tmp_path / "registry", tmp_path / "like.fpsig", 3)
    with Registry.open(tmp_path / "registry") as registry:
        assert registry.count() == 3
    assert 0 < compared(tmp_path / "registry", tmp_path / "like.fpsig") <= 3


def test_a_suspect_that_nothing_explains_is_scanned_at_every_depth_among_one_and_several(tmp_path: Path):
    one, among = unregistered("tiny", TINY, tmp_path, 1, crowd=2)
    assert (one.models, among.models) == (1, 2)
    for row in (one, among):
        assert row.failures == ()
        assert {name: scan.depth for name, scan in row.scans.items()} == {
            "full": "full",
            "quick": "quick",
            "default": "deep",
        }
    assert not list(tmp_path.iterdir())


def test_a_run_that_ends_otherwise_or_takes_too_much_is_a_failure():
    good = Observed(1, "", "", 1000, 0, 0.0, 0.0)
    assert measure._failures("full", good, 1) == ()
    bad = Observed(2, "", "first\nlast", measure.MOST_MEMORY, 0, 0.0, 0.0)
    assert measure._failures("full", bad, 1) == ("full: status 2: last", "full: 500000000 bytes of memory")


def row(title: str, gigabytes: float, seconds: float, *, known: bool = True, models: int = 1) -> Row:
    scan = Scan(Cost(seconds, seconds), 10**8, "full", 10**6)
    return Row(
        title=title,
        tensors=1,
        stored=round(gigabytes * 1e9),
        hashed=Cost(2.0, 2.0),
        sketch=Sketch(Cost(1.0, 1.0), 10**6, 10**6) if models == 1 else None,
        scans={"full": scan, "quick": scan, "default": scan},
        models=models,
        known=known,
        failures=(),
    )


def test_a_line_is_laid_through_the_registered_models_in_published_shapes():
    names = list(MODELS)
    rows = [row(name, size, 1 + size / 2) for name, size in zip(names[1:], (0.6, 1, 2, 4, 8, 16), strict=True)]
    others = [row(names[0], 0.3, 99), row("none of them", 8, 99), row(names[1], 8, 99, known=False)]
    assert fitted([*others, *rows]) == rows
    found = line([*rows[:-1], row(names[-1], 16, 9)])
    assert (found.fixed, found.each) == (pytest.approx(1), pytest.approx(0.5))
    assert found.worst == pytest.approx(0)
    off = line([*rows[:-1], row(names[-1], 16, 18)])
    assert off.worst > 0.1
    text = page([*others, *rows], {}, [], runs=1, rounds=1, machine="A machine", others=0.25)
    assert "6 registered models in published shapes of 0.5 to 16 GB takes 1.00 +\n0.500 x GB seconds" in text
    assert text.startswith("# Resources\n\nA machine.\n")
    assert "other work took 25% of" in text


def test_the_page_tells_what_is_slower_than_the_checksum_and_what_everybody_answered():
    legs = [Leg("a", "`fp scan`", Cost(1.0, 2.0), "match"), Leg("a", "`modeldna compare`", Cost(3.0, 4.0), "COPY")]
    rows = [row("stranger", 1.0, 5.0, known=False), row("stranger", 1.0, 7.0, known=False, models=20)]
    text = page(rows, {"`fp --help`": Cost(0.1, 0.1)}, legs, runs=1, rounds=3, machine="m", others=0.0)
    assert "| stranger | 20 | full | 7.00 (7.00) | 3.50, 3.50 | 100 |" in text
    assert text.count("| stranger | 1 | 1.00 |") == 1
    assert "| a | 1.00 (2.00) *match* | 3.00 (4.00) *COPY* |" in text
    assert "by least squares" not in text


def test_answers_of_both_programs_are_read_and_the_rounds_go_on_in_turns(tmp_path: Path):
    report = {"verdict": "match", "matches": [{"relation": "identical"}], "suspect": {"depth": "quick"}}
    assert race._said_by_fp([report]) == "match, identical (quick)"
    assert race._said_by_fp([{**report, "verdict": "no-match", "matches": []}]) == "no-match (quick)"
    log = tmp_path / "log"
    write_and_say = "import json, sys; open(sys.argv[1], 'a').write(sys.argv[2]); print(sys.argv[3]); sys.exit(1)"
    said = json.dumps({"verdict": {"verdict": "FINE_TUNE"}})
    runners = {
        ("suspect", name): Runner(
            [sys.executable, "-c", write_and_say, str(log), name, said], [], race._said_by_modeldna
        )
        for name in "ab"
    }
    legs = race._race(runners, tmp_path, 2)
    assert [(leg.suspect, leg.command, leg.answer) for leg in legs] == [
        ("suspect", "a", "FINE_TUNE"),
        ("suspect", "b", "FINE_TUNE"),
    ]
    assert log.read_text() == "ababab"
