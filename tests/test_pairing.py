"""Tensors without names are put together by their values, whatever was done to the model that keeps its function."""

from __future__ import annotations

import random
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from benchmarks.rewrites.cases import damages, rewrite, rewrites
from benchmarks.zoo.models import Style, generator
from benchmarks.zoo.recipes import family
from benchmarks.zoo.store import load_weights
from fingerprint.assemble import measure_checkpoint
from fingerprint.canonical import lay_out
from fingerprint.checkpoint import open_checkpoint
from fingerprint.measure import measure_tensor
from fingerprint.parameters import DEFAULT_PARAMETERS
from fingerprint.roles import pairing
from fingerprint.roles.heads import MOST_HEAD_SIZES, _head_sizes
from fingerprint.roles.infer import infer_wiring
from fingerprint.roles.residual import SliceNorms, find_gains
from tests.quick_zoo import quick_zoo

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fingerprint.roles.wiring import Place, Wiring

SPECS = {spec.id: spec for spec in family("a", quick=True)}
STEMS = ("quick-a-llama-48", "quick-a-gpt2-48", "quick-a-llamatied-48")
CASES = [(stem, one.name) for stem in STEMS for one in rewrites(SPECS[f"{stem}-A"].shape.style)]
MLP = {
    Style.LLAMA: ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
    Style.GPT2: ["mlp.c_fc", "mlp.c_proj"],
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    return quick_zoo(tmp_path_factory, list(SPECS.values()), [f"{stem}-A" for stem in STEMS])


READERS = tuple(
    f"{part}.weight" for part in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "c_attn", "c_fc", "lm_head")
)


class Blank:
    """A file of tensors under random names in random order, and what they were called."""

    def __init__(self, tensors: Mapping[str, np.ndarray], path: Path, seed: int = 0) -> None:
        chance = random.Random(seed)
        names = list(tensors)
        chance.shuffle(names)
        self.was = {f"t{chance.getrandbits(48):012x}": name for name in names}
        save_file({blank: np.ascontiguousarray(tensors[name]) for blank, name in self.was.items()}, path)
        self.path = path

    def wiring(self) -> Wiring:
        with open_checkpoint(self.path) as checkpoint:
            layout = lay_out(checkpoint.tensors, {})
            self.tensors = layout.tensors
            measured = [
                measure_tensor(one.view, DEFAULT_PARAMETERS, casts=False, norms=len(one.view.shape) == 2)
                for one in layout.tensors
            ]
            norms = {
                position: SliceNorms(one.row_norms, one.column_norms)
                for position, one in enumerate(measured)
                if one.row_norms is not None and one.column_norms is not None
            }
            contents = [one.content for one in measured]
            return infer_wiring(layout.tensors, contents, norms, layout.width, DEFAULT_PARAMETERS.seed)

    def name(self, place: Place | int) -> str:
        """The name that it had, with the part of a block that was split."""
        stored, _, part = self.tensors[place if isinstance(place, int) else place.position].name.partition("[")
        return self.was[stored].removesuffix(".weight") + (f"[{part}" if part else "")


def mlps_of(blank: Blank, wiring: Wiring) -> list[list[str]]:
    return sorted([blank.name(place) for place in mlp.places] for mlp in wiring.mlps)


def rewritten(zoo: Path, stem: str, name: str, seed: str = "pairing") -> tuple[dict[str, np.ndarray], object]:
    shape = SPECS[f"{stem}-A"].shape
    case = next(one for one in rewrites(shape.style) if one.name == name)
    made = rewrite(load_weights(zoo, f"{stem}-A"), shape, case, seed)
    return {tensor: w.numpy() for tensor, w in made.tensors.items()}, made


def expected(tensors: Mapping[str, np.ndarray], style: Style) -> list[list[str]]:
    first = MLP[style][0]
    prefixes = [name.removesuffix(f"{first}.weight") for name in tensors if name.endswith(f"{first}.weight")]
    return sorted([prefix + part for part in MLP[style]] for prefix in prefixes)


@pytest.mark.parametrize(("stem", "case"), CASES)
def test_mlps_of_a_rewritten_model_are_put_together_with_their_roles(zoo, tmp_path, stem, case):
    tensors, _ = rewritten(zoo, stem, case)
    blank = Blank(tensors, tmp_path / "model.safetensors")
    wiring = blank.wiring()
    style = SPECS[f"{stem}-A"].shape.style
    found, wanted = mlps_of(blank, wiring), expected(tensors, style)
    # These models are hardly trained, and one layer of theirs may not be told.
    assert all(one in wanted for one in found)
    assert len(found) >= len(wanted) - 1
    turned = {mlp.gate.transposed for mlp in wiring.mlps} | {mlp.down.transposed for mlp in wiring.mlps}
    assert turned == {style is Style.GPT2}
    assert all(mlp.decided for mlp in wiring.mlps)


@pytest.mark.parametrize("stem", STEMS[:2])
@pytest.mark.parametrize("damage", ["4bit", "noise-5", "sparse-50", "layers-dropped", "neurons-halved"])
def test_mlps_are_put_together_after_damage(zoo, tmp_path, stem, damage):
    shape = SPECS[f"{stem}-A"].shape
    _, made = rewritten(zoo, stem, "laundered")
    done = next(one for one in damages() if one.name == damage)
    site = SimpleNamespace(shape=shape, random=generator("damage"), order=made.order)
    tensors = {name: w.contiguous().numpy() for name, w in done.apply(made.tensors, site).items()}
    blank = Blank(tensors, tmp_path / "model.safetensors")
    found, wanted = mlps_of(blank, blank.wiring()), expected(tensors, shape.style)
    assert all(one in wanted for one in found)
    assert len(found) >= len(wanted) - 1


@pytest.mark.parametrize("case", ["none", "heads-permuted", "values-rescaled", "keys-changed", "rotated"])
def test_attention_is_put_together_in_halves(zoo, tmp_path, case):
    tensors, _ = rewritten(zoo, STEMS[0], case)
    blank = Blank(tensors, tmp_path / "model.safetensors")
    halves: Counter[str] = Counter()
    for block in blank.wiring().attentions:
        for first, second in ((block.query, block.key), (block.value, block.output)):
            if first is not None and second is not None:
                names = [blank.name(first).split("."), blank.name(second).split(".")]
                assert names[0][2] == names[1][2]
                halves[names[0][-1] + names[1][-1]] += 1
    assert halves == {"q_projk_proj": 4, "v_projo_proj": 4}


@pytest.mark.parametrize("case", ["none", "values-rescaled", "rotated"])
def test_outputs_join_the_blocks_that_were_stored_whole(zoo, tmp_path, case):
    tensors, _ = rewritten(zoo, STEMS[1], case)
    blank = Blank(tensors, tmp_path / "model.safetensors")
    blocks = blank.wiring().attentions
    assert len(blocks) == 4
    for block in blocks:
        assert block.query is not None
        layer = blank.name(block.query).split(".")[2]
        assert blank.name(block.query) == f"transformer.h.{layer}.attn.c_attn[query]"
        assert blank.name(block.value) == f"transformer.h.{layer}.attn.c_attn[value]"
        assert block.output is not None
        assert block.output.transposed
        assert blank.name(block.output) == f"transformer.h.{layer}.attn.c_proj"


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("case", ["gains-scrambled", "all-but-vocabulary", "all"])
def test_scrambled_gains_find_every_matrix_behind_them(zoo, tmp_path, stem, case):
    tensors, _ = rewritten(zoo, stem, case)
    blank = Blank(tensors, tmp_path / "model.safetensors")
    gains = blank.wiring().gains
    found: dict[str, set[str]] = {}
    for position, gain in gains.items():
        assert gain.offset == 0
        found.setdefault(blank.name(gain.position), set()).add(blank.name(position))
    for norm, readers in found.items():
        attention = norm.endswith(("input_layernorm", "ln_1"))
        layer = norm.split(".")[2] if norm.count(".") > 2 else None
        for reader in readers:
            if reader == "lm_head":
                assert layer is None
            else:
                assert layer == reader.split(".")[2]
                assert attention == ("attn" in reader)
    readers = [name for name in tensors if name.endswith(READERS)]
    # Of a fused block each part reads it. A stream of 48 channels is narrow for a correlation.
    count = len(readers) + 2 * sum("c_attn.weight" in name for name in tensors)
    assert 0.6 * count <= len(gains) <= count


@pytest.mark.parametrize("case", ["none", "gains-folded", "rotated"])
def test_gains_that_were_not_scrambled_are_left_alone(zoo, tmp_path, case):
    tensors, _ = rewritten(zoo, STEMS[0], case)
    assert not Blank(tensors, tmp_path / "model.safetensors").wiring().gains


def test_a_gain_stored_less_one_is_told_from_its_logarithms():
    rng = np.random.default_rng(0)
    gain = np.exp(0.7 * rng.normal(size=256)).astype(np.float32)
    lengths = ((1 + 0.05 * rng.normal(size=256)) / gain).astype(np.float32)
    matrix = SimpleNamespace(view=SimpleNamespace(shape=(64, 256)))
    for offset in (0.0, 1.0):
        stored = gain - np.float32(offset)
        vector = SimpleNamespace(view=SimpleNamespace(shape=(256,), read=lambda a, b, stored=stored: stored[a:b]))
        norms = {0: SliceNorms(np.ones(64, np.float32), lengths)}
        (found,) = find_gains([matrix, vector], norms, [1], 256).values()
        assert found == (1, offset, 1)


def test_the_embedding_comes_before_the_head(zoo, tmp_path):
    for case in ("none", "rotated", "all"):
        tensors, _ = rewritten(zoo, STEMS[0], case)
        blank = Blank(tensors, tmp_path / f"{case}.safetensors")
        names = [blank.name(table) for table in blank.wiring().tables]
        assert names == ["model.embed_tokens", "lm_head"]


def test_positions_are_told_by_their_neighbours(tmp_path):
    tensors = layers(3)
    assert Blank(tensors, tmp_path / "without.safetensors").wiring().positions is None
    for count in (64, 100):
        steps = np.random.default_rng(1).normal(size=(count, 64))
        table = np.stack([steps[max(0, i - 4) : i + 1].sum(axis=0) for i in range(count)])
        blank = Blank(tensors | {"positions": table.astype(np.float32)}, tmp_path / f"{count}.safetensors")
        found = blank.wiring().positions
        assert found is not None
        assert blank.name(found) == "positions"


def test_samples_of_a_nameless_model_lie_on_the_right_matrices(zoo, tmp_path):
    tensors, _ = rewritten(zoo, STEMS[0], "laundered")
    blank = Blank(tensors, tmp_path / "model.safetensors")
    with open_checkpoint(blank.path) as checkpoint:
        measured = measure_checkpoint(checkpoint, casts=False, neurons=32)
    samples = [sample for sample in measured.fingerprint.neurons if sample.frame == "fixed"]
    found = [[blank.was[measured.tensors[i].name].split(".", 3)[3] for i in sample.tensors] for sample in samples]
    assert found == [[f"{part}.weight" for part in MLP[Style.LLAMA]]] * 4
    assert {sample.activation for sample in samples} == {""}


def similar(rng: np.random.Generator, count: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gate, up and down (count, width) of neurons in families, as training makes them, rescaled at random."""
    family_of = rng.integers(0, 8, size=count)
    parts = [rng.normal(size=(8, width))[family_of] + 1.5 * rng.normal(size=(count, width)) for _ in range(3)]
    signs = rng.choice([-1.0, 1.0], size=(count, 1))
    scale = np.exp(rng.normal(size=(count, 1)))
    return parts[0], parts[1] * signs * scale, parts[2] * signs / scale


def layers(number: int, neurons: int = 160, width: int = 64, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tensors = {"embed": rng.normal(size=(1200, width))}
    for layer in range(number):
        gate, up, down = similar(rng, neurons, width)
        tensors |= {f"{layer}.gate": gate, f"{layer}.up": up, f"{layer}.down": down.T}
        tensors |= {f"{layer}.{part}": rng.normal(size=(width, width)) for part in "qkvo"}
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def test_the_other_way_of_storing_is_found_too(tmp_path):
    turned = {name: value.T if name != "embed" else value for name, value in layers(3).items()}
    blank = Blank(turned, tmp_path / "model.safetensors")
    wiring = blank.wiring()
    assert mlps_of(blank, wiring) == [[f"{i}.{part}" for part in ("gate", "up", "down")] for i in range(3)]
    assert all(place.transposed for mlp in wiring.mlps for place in mlp.places)


def test_fused_and_stacked_projections_are_put_together(tmp_path):
    plain = layers(3)
    fused = {name: value for name, value in plain.items() if not name.endswith(("gate", "up"))}
    for i in range(3):
        fused[f"{i}.gate_up"] = np.concatenate([plain[f"{i}.gate"], plain[f"{i}.up"]])
    blank = Blank(fused, tmp_path / "fused.safetensors")
    assert mlps_of(blank, blank.wiring()) == [[f"{i}.gate_up[gate]", f"{i}.gate_up[up]", f"{i}.down"] for i in range(3)]

    stacked = {name: value for name, value in plain.items() if name.endswith(("embed", "q", "k", "v", "o"))}
    stacked |= {part: np.stack([plain[f"{i}.{part}"] for i in range(3)]) for part in ("gate", "up", "down")}
    blank = Blank(stacked, tmp_path / "stacked.safetensors")
    found = mlps_of(blank, blank.wiring())
    assert found == [[f"gate[{i}]", f"up[{i}]", f"down[{i}]"] for i in range(3)]


@pytest.mark.parametrize("seed", range(4))
def test_random_weights_are_not_put_together(tmp_path, seed):
    rng = np.random.default_rng(seed)
    tensors = {name: rng.normal(size=value.shape).astype(np.float32) for name, value in layers(4).items()}
    wiring = Blank(tensors, tmp_path / "model.safetensors", seed).wiring()
    assert not wiring.mlps
    assert not wiring.attentions
    assert not wiring.gains
    assert wiring.positions is None


def test_values_that_are_not_numbers_do_no_harm(tmp_path):
    tensors = layers(3)
    tensors["0.gate"][:, 3] = np.nan
    tensors["0.up"][5] = np.inf
    tensors["1.gate"][:] = 3e38
    tensors["1.up"][:] = 0
    tensors["1.down"][:20] = 1e-44
    tensors["q.gain"] = np.full(64, np.nan, np.float32)
    tensors["r.gain"] = np.zeros(64, np.float32)
    tensors["s.gain"] = np.linspace(-3e38, 3e38, 64, dtype=np.float32)
    blank = Blank(tensors, tmp_path / "model.safetensors")
    found = mlps_of(blank, blank.wiring())
    assert ["2.gate", "2.up", "2.down"] in found


def test_what_is_read_again_is_bounded(tmp_path, monkeypatch):
    tensors = layers(6)
    blank = Blank(tensors, tmp_path / "model.safetensors")
    assert len(blank.wiring().mlps) == 6
    monkeypatch.setattr(pairing, "MOST_READ", 18 * 64 * (pairing.LEAST_NEURONS - 1))
    wiring = blank.wiring()
    assert not wiring.mlps
    assert wiring.notes == ("MLPs of 160 neurons: too many matrices to be put together without names",)


def test_what_chance_puts_beside_fc_in_is_no_gate():
    """Scores that were seen: of GPT-2's MLPs beside a table of positions of their size, and of two gated MLPs."""
    ungated = np.array([[4.3, 93.0, 2.8], [77.0, 1.8, 1.7], [0.6, 0.5, 130.9], [0.5, 1.0, -1.3]])
    assert not pairing._has_gates(ungated)
    gated = np.array([[51.4, 3.1], [30.5, 2.0], [2.4, 65.6], [0.3, 71.3]])
    assert pairing._has_gates(gated)
    assert pairing._has_gates(np.concatenate([gated[:3], [[0.5, 1.0]]]))


def test_gate_and_up_read_one_gain_though_one_of_them_no_longer_shows_it(zoo, tmp_path):
    tensors, _ = rewritten(zoo, STEMS[0], "gains-scrambled")
    blurred = "model.layers.1.mlp.gate_proj.weight"
    spread = np.exp(0.6 * np.random.default_rng(3).normal(size=tensors[blurred].shape[1]))
    for changed in ({}, {blurred: (tensors[blurred] * spread).astype(np.float32)}):
        blank = Blank(tensors | changed, tmp_path / "model.safetensors")
        gains = {blank.name(reader): blank.name(gain.position) for reader, gain in blank.wiring().gains.items()}
        for layer in range(4):
            norm = f"model.layers.{layer}.post_attention_layernorm"
            assert {gains[f"model.layers.{layer}.mlp.{part}_proj"] for part in ("gate", "up")} == {norm}


@pytest.mark.parametrize(
    ("channels", "size"), [(38, 38), (108, 36), (192, 64), (1024, 128), (4544, 64), (576, 64), (80, 80), (256, 256)]
)
def test_heads_of_every_size_are_tried_and_no_more_than_a_few(channels: int, size: int) -> None:
    sizes = _head_sizes(channels)
    assert size in sizes
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) <= MOST_HEAD_SIZES
    assert all(channels % one == 0 for one in sizes)
