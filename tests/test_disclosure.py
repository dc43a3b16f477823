"""What a signature discloses, with everything in it and with less."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.disclosure.reconstruct import centred, explained, reconstruct
from fingerprint.assemble import fingerprint
from fingerprint.checkpoint import open_checkpoint
from signatures import sign
from signatures.disclosure import disclose_less, discloses_less

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli_support import Program

pytest_plugins = ["tests.cli_fixtures"]

GATE = "model.layers.0.mlp.gate_proj.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    random = np.random.default_rng(5)
    shapes = {
        "model.embed_tokens.weight": (512, 96),
        GATE: (256, 96),
        "model.layers.0.mlp.up_proj.weight": (256, 96),
        "model.layers.0.mlp.down_proj.weight": (96, 256),
    }
    path = tmp_path_factory.mktemp("disclosure") / "model.safetensors"
    save_file({name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}, path)
    return path


@pytest.fixture(scope="module")
def measured(model):
    with open_checkpoint(model) as checkpoint:
        made = fingerprint(checkpoint)
        views = {view.name: view.read(0, 96 * 256).reshape(256, 96).astype(float) for view in checkpoint.tensors
                 if view.name == GATE}  # fmt: skip
    return made, views[GATE]


def test_random_numbers_are_explained_as_far_as_they_were_sampled_and_no_further(measured):
    made, truth = measured
    signature = sign(made).fingerprint
    position = next(i for i, one in enumerate(signature.tensors) if one.name == GATE)
    trivial = truth - centred(truth)
    shares = []
    for kinds in (("sketch",), ("sketch", "slices"), ("sketch", "slices", "neurons")):
        found, numbers = reconstruct(signature, position, kinds=kinds)
        shares.append(explained(truth, centred(found) + trivial, trivial))
        assert 0.75 * numbers / truth.size < shares[-1] < 1.15 * numbers / truth.size
    assert shares[0] < shares[1] < shares[2]
    found, _ = reconstruct(sign(disclose_less(made)).fingerprint, position)
    assert explained(truth, centred(found) + trivial, trivial) == pytest.approx(shares[1], abs=0.01)


def test_a_guess_is_only_changed_where_the_signature_knows_better(measured):
    made, truth = measured
    position = next(i for i, one in enumerate(made.tensors) if one.name == GATE)
    found, _ = reconstruct(made, position, truth)
    # Matrices are scaled before they are sketched, which rounds a little.
    assert np.abs(found - truth).max() < 0.05


def test_less_keeps_digests_and_sketches_and_no_neurons(measured):
    less = disclose_less(measured[0])
    assert discloses_less(less)
    assert not less.neurons
    assert not less.channels
    assert not less.grams
    assert [one.digest for one in less.tensors] == [one.digest for one in measured[0].tensors]
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
