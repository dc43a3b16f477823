"""Hidden units of convolutional and recurrent networks are found after every rewrite; those of strangers are not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import save_file

from benchmarks.lineage.derive_ops import prune_small
from benchmarks.units import residual
from benchmarks.units.networks import CHANNELS, Kind, train
from benchmarks.units.rewrites import REWRITES, halve_channels, rewrite
from fingerprint.assemble import fingerprint
from fingerprint.checkpoint import open_checkpoint
from fingerprint.comparing.coins import _stand_apart, match_neurons, mutual_partners, toss, usable_coins
from fingerprint.comparing.comparison import _recognised
from fingerprint.vocabulary import Frame
from signatures.registry import Registry
from signatures.report import Confidence, Link, Relation, Verdict
from signatures.scan import scan_path
from signatures.signature import decode, sign, signed_bytes
from tests.small_models import gauge_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fingerprint.records import Fingerprint

CASES = [(kind, name) for kind in Kind for name in REWRITES[kind]]
KINDS = list(Kind)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(kind: Kind, seed: int) -> dict[str, torch.Tensor]:
    """A network of random weights, with norms that differ from channel to channel."""
    weights = train(kind, f"test/{kind}/{seed}", steps=0)
    random = torch.Generator().manual_seed(seed)
    for name, w in weights.items():
        if ("bn" in name or "downsample.1" in name) and w.dtype.is_floating_point:
            weights[name] = w + 0.3 * torch.rand(w.shape, generator=random)
    if kind is Kind.RESNET:
        _let_channels_resemble_each_other(weights, random)
    return weights


def _let_channels_resemble_each_other(weights: dict[str, torch.Tensor], random: torch.Generator) -> None:
    """In each space some channels are alike, in what writes them and in what reads them, as training makes them."""
    for writers, readers in residual.spaces(weights):
        size = len(weights[f"{writers[0]}.weight"])
        mixed = (
            torch.eye(size) + 0.7 * torch.randn(size, 6, generator=random) @ torch.randn(6, size, generator=random) / 3
        )
        mixed = mixed @ mixed.T / 8
        for name in writers:
            weights[f"{name}.weight"] = torch.einsum("po,oihw->pihw", mixed, weights[f"{name}.weight"])
        for name in [one for one in readers if one != "fc"]:
            weights[f"{name}.weight"] = torch.einsum("pi,oihw->ophw", mixed, weights[f"{name}.weight"])


def save(weights: dict[str, torch.Tensor], path: Path, *, named: bool = False) -> Path:
    items = weights.items() if named else sorted(weights.items(), key=lambda item: item[0][::-1])
    save_file({name if named else f"t{i}": w.contiguous() for i, (name, w) in enumerate(items)}, path)
    return path


def measured(path: Path, *, registered: bool) -> Fingerprint:
    with open_checkpoint(path) as checkpoint:
        return fingerprint(checkpoint, casts=registered, workers=1)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("units")
    with Registry.open(folder / "registry", create=True) as opened:
        for kind in KINDS:
            path = save(network(kind, 1), folder / "model.safetensors", named=True)
            opened.register(sign(measured(path, registered=True)), name=f"{kind}/1")
        yield opened


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_rewritten_network_is_found_without_its_names(
    kind: Kind, name: str, registry: Registry, tmp_path: Path
) -> None:
    made, error = rewrite(network(kind, 1), kind, REWRITES[kind][name], "test")
    assert error < 1e-5
    report = scan_path(registry, save(made, tmp_path / "suspect.safetensors"))
    assert report.verdict is Verdict.MATCH
    assert [match.model for match in report.matches] == [f"{kind}/1"]
    assert report.matches[0].confidence is not Confidence.POSSIBLE
    assert "residual-rotated" not in report.matches[0].undone
    assert ("neurons-permuted" in report.matches[0].undone) == name.startswith("permuted")


def test_convolutions_that_were_only_rescaled_are_said_to_be_rewritten(registry: Registry, tmp_path: Path) -> None:
    made, _ = rewrite(network(Kind.CNN, 1), Kind.CNN, REWRITES[Kind.CNN]["rescaled"], "test")
    (match,) = scan_path(registry, save(made, tmp_path / "suspect.safetensors", named=True)).matches
    assert match.relation is Relation.REWRITTEN
    assert "neurons-rescaled" in match.undone


def test_convolutions_that_were_trained_on_are_not(registry: Registry, tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(3)
    first = network(Kind.CNN, 1)
    noise = {name: 0.3 * w.std() * torch.randn(w.shape, generator=random) for name, w in first.items() if w.ndim > 1}
    made = {name: w + noise.get(name, 0) for name, w in first.items()}
    (match,) = scan_path(registry, save(made, tmp_path / "suspect.safetensors", named=True)).matches
    assert match.relation is not Relation.REWRITTEN
    assert "neurons-rescaled" not in match.undone


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_another_seed_is_not(kind: Kind, registry: Registry, tmp_path: Path) -> None:
    name = list(REWRITES[kind])[-1]
    made, _ = rewrite(network(kind, 3), kind, REWRITES[kind][name], "test")
    report = scan_path(registry, save(made, tmp_path / "suspect.safetensors"))
    assert report.verdict is Verdict.NO_MATCH
    assert report.matches == ()


def test_scrambled_signs_leave_the_calibrated_test_alone(registry: Registry, tmp_path: Path) -> None:
    name = "permuted, rotated, signs scrambled"
    made, _ = rewrite(network(Kind.LSTM, 1), Kind.LSTM, REWRITES[Kind.LSTM][name], "test")
    report = scan_path(registry, save(made, tmp_path / "suspect.safetensors"))
    assert report.matches[0].confidence is Confidence.LIKELY
    assert "signs-scrambled" in report.matches[0].undone


@pytest.mark.parametrize("kind", [Kind.LSTM, Kind.GRU])
def test_coins_of_cells_are_fair(kind: Kind, tmp_path: Path) -> None:
    """The registered model's own signs, thrown anew many times: every throw is an exact null."""
    ours = measured(save(network(kind, 1), tmp_path / "a.safetensors", named=True), registered=True)
    theirs = measured(save(network(kind, 2), tmp_path / "b.safetensors", named=True), registered=False)
    matches = match_neurons(ours.neurons, theirs.neurons, Frame.UNITS)
    usable = usable_coins(ours.neurons)
    assert sum(int(usable[match.registered].sum()) for match in matches) >= 96
    rng = np.random.default_rng(0)
    logs = []
    for _ in range(400):
        for match in matches:
            match.coins[:] = rng.choice([-1.0, 1.0], size=match.coins.size)
        logs.append(toss(matches, usable).log10_p)
    shares = [float(np.mean(np.array(logs) <= -level)) for level in (1, 2)]
    assert shares[0] < 0.16
    assert shares[1] < 0.035


def test_every_layer_of_convolutions_is_sampled_once(tmp_path: Path) -> None:
    found = measured(save(network(Kind.CNN, 1), tmp_path / "a.safetensors", named=True), registered=True)
    assert [sample.size for sample in found.neurons] == [*CHANNELS[1:]]


def test_a_layer_as_wide_as_what_it_reads_is_not_left_out(tmp_path: Path) -> None:
    weights = train(Kind.CNN, "test/equal", steps=0, channels=(3, 16, 24, 24, 32))
    for named in (True, False):
        found = measured(save(weights, tmp_path / "a.safetensors", named=named), registered=named)
        assert [sample.size for sample in found.neurons] == [16, 24, 24, 32]


def test_of_two_inputs_each_may_be_read_without_it(tmp_path: Path) -> None:
    """Nothing says in which of the two chains a layer of equal width lies: both ways are looked at."""
    shapes = {"a1": (16, 3), "a2": (24, 16), "b1": (16, 4), "b2": (16, 16), "b3": (32, 16)}
    random = torch.Generator().manual_seed(0)
    weights = {f"{name}.weight": torch.randn(*shape, 3, 3, generator=random) for name, shape in shapes.items()}
    found = measured(save(weights, tmp_path / "a.safetensors", named=True), registered=True)
    names = [tensor.name.removesuffix(".weight") for tensor in found.tensors]
    chained = {(names[sample.tensors[0]], names[sample.tensors[2]]) for sample in found.neurons}
    assert {("a1", "a2"), ("a1", "b2"), ("b1", "b2"), ("b1", "b3"), ("b2", "b3")} <= chained


@pytest.mark.parametrize("damage", ["sparse", "halved"])
def test_convolutions_that_lost_half_are_found(damage: str, registry: Registry, tmp_path: Path) -> None:
    for seed, wanted in ((1, Verdict.MATCH), (3, Verdict.NO_MATCH)):
        made, _ = rewrite(network(Kind.CNN, seed), Kind.CNN, REWRITES[Kind.CNN]["permuted, rescaled, folded"], "test")
        lost = halve_channels(made, Kind.CNN) if damage == "halved" else prune_small(made, 0.5)
        report = scan_path(registry, save(lost, tmp_path / "suspect.safetensors"))
        assert report.verdict is wanted
        assert [match.confidence for match in report.matches if match.model == "cnn/1"] in ([], [Confidence.LIKELY])


def test_units_stand_apart_if_they_prefer_each_other_clearly() -> None:
    total = np.full((4, 5), 0.1, np.float32)
    total[0, 2] = 1.9  # clear from both sides
    total[1, 3], total[1, 4] = 1.5, 1.3  # two that are about as near
    total[2, 0], total[3, 0] = 1.6, 1.5  # two that want the same one
    assert mutual_partners(total).tolist() == [True, True, True, False]
    assert _stand_apart(total).tolist() == [True, False, False, False]
    assert not _stand_apart(total[:1]).any()
    assert not _stand_apart(total[:, :1]).any()


@pytest.mark.parametrize("kind", [Kind.LSTM, Kind.GRU])
def test_units_of_cells_that_prefer_each_other_are_explained_though_rest_and_gate_disagree(
    kind: Kind, tmp_path: Path
) -> None:
    ours = measured(save(network(kind, 1), tmp_path / "a.safetensors", named=True), registered=True)
    explained = {}
    for seed in (1, 3):
        made, _ = rewrite(network(kind, seed), kind, REWRITES[kind]["permuted, rotated"], "test")
        theirs = measured(save(prune_small(made, 0.5), tmp_path / "b.safetensors"), registered=False)
        found = match_neurons(ours.neurons, theirs.neurons, Frame.UNITS)
        explained[seed] = [_recognised(match) for match in found]
    assert min(explained[1]) > 0.9
    assert max(explained[3]) < 0.03
    match = found[0]
    some = np.arange(len(match.scores)) % 4 == 0
    alone = replace(match, mutual=some, scores=np.full(len(some), 0.6), concordant=np.zeros_like(some))
    assert _recognised(alone) == some.mean()
    assert _recognised(replace(alone, mutual=None)) == 0.0
    assert _recognised(replace(alone, scores=np.full(len(some), 0.52))) == 0.0


def test_a_copied_beginning_is_no_lineage(registry: Registry, tmp_path: Path) -> None:
    """Two of three layers of a stranger: the third, which has most of the weights, is its own."""
    made = network(Kind.CNN, 3) | {
        name: w for name, w in network(Kind.CNN, 1).items() if name.startswith(("conv1", "conv2", "bn1", "bn2"))
    }
    report = scan_path(registry, save(made, tmp_path / "suspect.safetensors"))
    assert [match.link for match in report.matches] == [Link.SHARED_COMPONENT]


def test_convolutions_have_no_coins(tmp_path: Path) -> None:
    weights = network(Kind.CNN, 1)
    ours = measured(save(weights, tmp_path / "a.safetensors", named=True), registered=True)
    found = gauge_of(ours, measured(save(weights, tmp_path / "b.safetensors"), registered=False))
    assert found.tests == ()
    assert found.concordance > 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_samples_of_units_survive_their_signature(kind: Kind, tmp_path: Path) -> None:
    weights = network(kind, 1)
    ours = measured(save(weights, tmp_path / "a.safetensors", named=True), registered=True)
    kept = decode(signed_bytes(ours)).fingerprint
    theirs = measured(save(weights, tmp_path / "b.safetensors"), registered=False)
    before, after = gauge_of(ours, theirs), gauge_of(kept, theirs)
    assert after.concordance == pytest.approx(before.concordance, abs=0.05)
    assert [one.frame for one in after.frames] == [Frame.UNITS]
