"""Attacks do what they say: free ones keep the function, others cost what is measured."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.adversarial import attacks
from benchmarks.rewrites.forward import logits
from benchmarks.zoo.models import generator, initial_weights
from benchmarks.zoo.recipes import family
from fingerprint.parameters import DEFAULT_PARAMETERS
from fingerprint.sketch import MatrixSketcher
from signatures import compare_paths

SPEC = next(spec for spec in family("a", quick=True) if spec.id == "quick-a-llama-48-A")
VICTIM, OTHER = (initial_weights(SPEC.shape, key) for key in "VU")
IDS = torch.randint(0, SPEC.shape.vocabulary, (2, 16), generator=generator("ids"))


def test_flipping_towards_a_victim_is_free_and_negates_pairs():
    made = attacks.flipped_towards(OTHER, SPEC.shape, VICTIM)
    assert torch.allclose(logits(SPEC.shape, made, IDS), logits(SPEC.shape, OTHER, IDS), atol=1e-4)
    name = "model.layers.0.mlp.up_proj.weight"
    signs = (made[name] / OTHER[name]).mean(1)
    assert set(signs.round().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("way", [attacks.permuted_towards, attacks.rotated_towards])
def test_rewriting_towards_a_victim_is_free_and_raises_agreement(way):
    made = way(OTHER, SPEC.shape, VICTIM)
    assert torch.allclose(logits(SPEC.shape, made, IDS), logits(SPEC.shape, OTHER, IDS), atol=1e-4)
    name = "model.layers.0.mlp.up_proj.weight"
    assert float((made[name] * VICTIM[name]).sum()) > float((OTHER[name] * VICTIM[name]).sum())


@pytest.mark.parametrize("way", [attacks.split_neurons, attacks.padded_neurons])
def test_widening_is_free(way):
    made = way(VICTIM, SPEC.shape, "key")
    assert torch.allclose(logits(SPEC.shape, made, IDS), logits(SPEC.shape, VICTIM, IDS), atol=1e-4)
    assert len(made["model.layers.0.mlp.gate_proj.weight"]) == 2 * SPEC.shape.neurons


def test_the_least_change_gives_the_public_samples_of_the_target():
    made = attacks.sketched_as(OTHER, VICTIM.__getitem__, slices=False, neurons=False)
    name = "lm_head.weight"
    sketches = []
    for weights in (made, VICTIM, OTHER):
        sketcher = MatrixSketcher(*weights[name].shape, DEFAULT_PARAMETERS)
        sketcher.update(0, weights[name].numpy())
        sketches.append(sketcher.finish().whole.ravel())
    one, two, three = (torch.from_numpy(sketch) for sketch in sketches)
    assert torch.cosine_similarity(one, two, 0) > 0.999
    assert torch.cosine_similarity(three, two, 0) < 0.5
    change, entries = attacks.changed({name: OTHER[name]}, {name: made[name]})
    assert 0.1 < change < 0.5
    assert entries > 0.99


@pytest.mark.parametrize("gated", [True, False])
def test_a_match_forged_on_public_samples_contradicts_itself_and_accuses_nobody(tmp_path, gated):
    shapes = (
        {
            "model.embed_tokens.weight": (512, 256),
            "model.layers.0.mlp.gate_proj.weight": (512, 256),
            "model.layers.0.mlp.up_proj.weight": (512, 256),
            "model.layers.0.mlp.down_proj.weight": (256, 512),
        }
        if gated
        else {
            "transformer.wte.weight": (512, 256),
            "transformer.h.0.mlp.c_fc.weight": (256, 512),
            "transformer.h.0.mlp.c_proj.weight": (512, 256),
        }
    )
    random = generator("forged")
    victim, other = ({name: torch.randn(shape, generator=random) for name, shape in shapes.items()} for _ in range(2))
    forged = attacks.sketched_as(other, victim.__getitem__, slices=True, neurons=False)
    tuned = {name: w + 0.2 * torch.randn(w.shape, generator=random) for name, w in victim.items()}
    paths = [tmp_path / f"{name}.safetensors" for name in ("victim", "forged", "tuned")]
    for path, weights in zip(paths, (victim, forged, tuned), strict=True):
        save_file(weights, path)
    made, honest = (compare_paths(paths[0], path) for path in paths[1:])
    assert made.verdict == "possible"
    assert made.matches[0].confidence == "possible"
    assert honest.verdict == "match"
    assert honest.matches[0].confidence == "certain"
    assert any("made to match a public signature" in note for note in made.notes)
    assert not any("public signature" in note for note in honest.notes)


def test_sampled_rows_are_a_small_share_of_entries():
    made = attacks.with_sampled_rows(OTHER, VICTIM, 8, ("gate_proj.weight",))
    _, entries = attacks.changed(OTHER, made)
    assert 0 < entries < 0.02
