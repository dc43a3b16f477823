"""What a signature discloses, with everything in it and with less."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.disclosure import reconstruct as reconstruction
from benchmarks.disclosure.__main__ import table
from benchmarks.disclosure.grid import LEVELS, drawn_to
from benchmarks.disclosure.reconstruct import Means, Sibling, explained, reconstruct
from benchmarks.disclosure.sections import Reader, Section, numbers_held, sections_of
from benchmarks.disclosure.study import knowing, rows_of
from benchmarks.disclosure.translate import Translator
from fingerprint.assemble import measure_checkpoint
from fingerprint.checkpoint import open_checkpoint
from fingerprint.measure import matrix_shape
from signatures import sign
from signatures.disclosure import disclose_less, discloses_less

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from fingerprint.assemble import Measured
    from tests.cli_support import Program

pytest_plugins = ["tests.cli_fixtures"]

LAYER = "model.layers.0."
GATE = f"{LAYER}mlp.gate_proj.weight"


def saved(path: Path, width: int, neurons: int) -> Path:
    random = np.random.default_rng(width)
    shapes = {"model.embed_tokens.weight": (512, width)}
    shapes |= {f"{LAYER}self_attn.{part}_proj.weight": (width, width) for part in "qkvo"}
    shapes |= {f"{LAYER}mlp.{part}_proj.weight": (neurons, width) for part in ("gate", "up")}
    shapes[f"{LAYER}mlp.down_proj.weight"] = (width, neurons)
    save_file({name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}, path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("disclosure") / "model.safetensors", 96, 256)


class Attack:
    """A model that is read, and what is explained of its matrices beyond the means of rows and columns."""

    def __init__(self, measured: Measured) -> None:
        self.measured = measured
        self.kept = sign(measured.fingerprint).fingerprint
        self.stranger, self.owner = Reader(self.kept), knowing(measured, self.kept)

    def at(self, name: str) -> int:
        return next(i for i, one in enumerate(self.kept.tensors) if one.name == name)

    def share(self, name: str, sections: Sequence[Section]) -> float:
        position = self.at(name)
        shape, rows = matrix_shape(self.kept.tensors[position].shape), rows_of(self.measured, position)
        return explained(shape, rows, reconstruct(sections, Means.of(shape, rows)))


@pytest.fixture(scope="module")
def attack(model):
    with open_checkpoint(model) as checkpoint:
        yield Attack(measure_checkpoint(checkpoint))


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    path = saved(tmp_path_factory.mktemp("narrow") / "model.safetensors", 48, 128)
    with open_checkpoint(path) as checkpoint:
        yield Attack(measure_checkpoint(checkpoint))


def without(sections: Sequence[Section], *kinds: str) -> list[Section]:
    return [one for one in sections if one.kind not in kinds]


def rows_from(matrix: np.ndarray) -> Callable[[int, int], np.ndarray]:
    return lambda start, stop: matrix[start:stop]


def test_a_matrix_with_fewer_elements_than_numbers_known_is_recovered():
    random = np.random.default_rng(1)
    truth = random.standard_normal((12, 9))
    sides = [(random.standard_normal((12, 8)), random.standard_normal((9, 7))) for _ in range(3)]
    sections = [Section("neurons", left, right, left.T @ truth @ right, 1e-6) for left, right in sides]
    prior = Sibling(np.zeros_like(truth))
    assert sum(one.numbers for one in sections) > truth.size
    assert explained(truth.shape, rows_from(truth), reconstruct(sections, prior)) > 0.9999
    fewer = reconstruct(sections[:1], prior)
    equations = np.kron(*sides[0]).T
    least = (np.linalg.pinv(equations) @ (equations @ truth.reshape(-1))).reshape(truth.shape)
    assert fewer.rows(0, 12) == pytest.approx(least, abs=1e-3)
    assert explained(truth.shape, rows_from(truth), fewer) < 0.9


def test_rows_known_up_to_their_lengths_are_recovered_where_other_numbers_tell_these():
    random = np.random.default_rng(2)
    truth = random.standard_normal((20, 16))
    lengths = np.linalg.norm(truth, axis=1, keepdims=True)
    unit = Section("channels", np.eye(20), np.eye(16), truth / lengths * 4.0, 1e-3, unit=1)
    sketch = [random.standard_normal((size, 8)) for size in truth.shape]
    known = Section("sketch", *sketch, sketch[0].T @ truth @ sketch[1], 1e-6)
    prior = Sibling(np.zeros_like(truth))
    shares = [explained(truth.shape, rows_from(truth), reconstruct(one, prior)) for one in ([unit], [known, unit])]
    assert shares[0] > 0.9
    assert shares[1] > 0.995


def test_random_numbers_are_explained_as_far_as_they_were_sampled_and_no_further(attack):
    sections = sections_of(attack.stranger, attack.at(GATE))
    elements = attack.kept.tensors[attack.at(GATE)].elements
    shares = []
    for left_out in (("slices", "neurons"), ("neurons",), ()):
        some = without(sections, *left_out)
        shares.append(attack.share(GATE, some))
        assert 0.75 * sum(one.numbers for one in some) / elements < shares[-1]
        assert shares[-1] < 1.15 * sum(one.numbers for one in some) / elements
    assert shares[0] < shares[1] < shares[2]
    less = sections_of(Reader(sign(disclose_less(attack.measured.fingerprint)).fingerprint), attack.at(GATE))
    assert attack.share(GATE, less) == pytest.approx(shares[1], abs=0.01)


@pytest.mark.parametrize("part", ["gate", "up", "down"])
def test_mlps_as_narrow_as_the_fixed_frame_are_open_to_all(narrow, part):
    name = f"{LAYER}mlp.{part}_proj.weight"
    sections = sections_of(narrow.stranger, narrow.at(name))
    assert narrow.share(name, sections) > 0.999
    assert narrow.share(name, without(sections, "neurons")) < 0.6


@pytest.mark.parametrize("part", ["q", "k", "v", "o"])
def test_attention_is_explained_by_its_channels_where_embeddings_are_known(attack, part):
    name = f"{LAYER}self_attn.{part}_proj.weight"
    known = sections_of(attack.owner, attack.at(name))
    assert {one.kind for one in known} == {"sketch", "slices", "channels"}
    assert attack.share(name, known) > attack.share(name, without(known, "channels")) + 0.1
    assert {one.kind for one in sections_of(attack.stranger, attack.at(name))} == {"sketch", "slices"}
    assert numbers_held(attack.kept, attack.at(name)) == sum(one.numbers for one in known)


def test_neurons_in_frames_that_a_reader_cannot_compute_are_translated(attack):
    for part in ("gate", "up", "down"):
        name = f"{LAYER}mlp.{part}_proj.weight"
        known = sections_of(attack.stranger, attack.at(name))
        translated = list(Translator(attack.stranger).sections(attack.at(name)))
        assert attack.share(name, [*known, *translated]) > attack.share(name, known) + 0.05
        of_owner = sections_of(attack.owner, attack.at(name))
        assert attack.share(name, of_owner) > attack.share(name, known) + 0.05


def test_channels_of_attention_are_translated_by_way_of_neurons(narrow):
    name = f"{LAYER}self_attn.q_proj.weight"
    known = without(sections_of(narrow.stranger, narrow.at(name)), "slices")
    translated = list(Translator(narrow.stranger).sections(narrow.at(name)))
    assert {one.kind for one in translated} == {"translated"}
    assert narrow.share(name, [*known, *translated]) > narrow.share(name, known) + 0.1


def test_rows_that_a_frame_was_made_of_are_told_by_what_neurons_write(narrow):
    name = "model.embed_tokens.weight"
    known = sections_of(narrow.stranger, narrow.at(name))
    translated = list(Translator(narrow.stranger).sections(narrow.at(name)))
    assert narrow.share(name, [*known, *translated]) > narrow.share(name, known) + 0.03
    assert not list(Translator(narrow.owner).sections(narrow.at(name)))


def test_a_guess_is_only_changed_where_the_signature_knows_better(attack):
    truth = rows_of(attack.measured, attack.at(GATE))(0, 256)
    found = reconstruct(sections_of(attack.stranger, attack.at(GATE)), Sibling(truth)).rows(0, 256)
    # Matrices are cut and rounded before they are kept.
    assert np.abs(found - truth).max() < 0.1


def test_the_page_has_a_row_for_each_kind_of_matrix(model, monkeypatch):
    monkeypatch.setattr(reconstruction, "STEPS", 2)
    lines = table(model, 1)
    header, _, *rows = "\n".join(lines).strip().splitlines()
    assert {len(row.split("|")) for row in rows} == {len(header.split("|"))}
    roles = {"token-embedding", "query", "key", "value", "attention-output", "gate", "up", "down"}
    assert {row.split("|")[1].strip() for row in rows} == roles
    (embeddings,) = (row for row in rows if "token-embedding" in row)
    assert embeddings.count("| - ") == 2


def test_entries_near_enough_are_drawn_to_their_grid():
    random = np.random.default_rng(3)
    truth = random.choice(LEVELS, (4, 32)) * 0.5
    guess = truth + 0.03 * random.standard_normal(truth.shape)
    assert drawn_to(guess, np.full(truth.shape, 0.5), 0.001) == pytest.approx(truth, abs=0.01)


def test_less_keeps_digests_and_sketches_and_no_neurons(attack):
    whole = attack.measured.fingerprint
    less = disclose_less(whole)
    assert discloses_less(less)
    assert not less.neurons
    assert not less.channels
    assert not less.grams
    assert [one.digest for one in less.tensors] == [one.digest for one in whole.tensors]
    assert all(one.sketch is not None and one.axes for one in less.tensors)
    assert {one.statistics.deviation for one in less.tensors} == {0.0}


def test_reports_say_what_a_signature_that_discloses_less_cannot_be_put_to(model, tmp_path, fp: Program):
    registry = tmp_path / "registry"
    ran = fp("register", model, "--name", "x/less", "--disclose", "less", registry=registry)
    assert ran.status == 0
    (report,) = json.loads(fp("scan", model, "--format", "json", registry=registry).out)
    assert report["matches"][0]["relation"] == "identical"
    assert any("rows, gauge and even against x/less" in one for one in report["power"]["not_tested"])
    whole, less = tmp_path / "whole.fpsig", tmp_path / "less.fpsig"
    fp("sketch", model, "-o", whole)
    fp("sketch", model, "-o", less, "--disclose", "less")
    assert less.stat().st_size < 0.5 * whole.stat().st_size
    (report,) = json.loads(fp("compare", less, model, "--format", "json").out)
    assert any("discloses less" in one for one in report["power"]["not_tested"])
    assert fp("register", whole, "--name", "x/whole", "--disclose", "less", registry=registry).status == 2
