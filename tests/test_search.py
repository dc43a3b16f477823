"""Candidates: what many models have in common neither hides the true one nor costs a scan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from msgspec.structs import replace
from safetensors.numpy import save_file

from benchmarks.synthetic import small_model
from fingerprint.assemble import fingerprint
from fingerprint.checkpoint import open_checkpoint
from signatures.index import MOST_TIED
from signatures.registry import Registry
from signatures.report import Relation
from signatures.scan import scan_path
from signatures.search import NEIGHBOURS, find_candidates
from signatures.signature import sign

if TYPE_CHECKING:
    from pathlib import Path

    from fingerprint.records import Fingerprint

FAMILY = MOST_TIED + NEIGHBOURS + 30
OWN = "layers.0.o"


def member(number: int) -> Fingerprint:
    """One of a family that has all tensors in common but one."""
    base, other = small_model(1, layers=1), small_model(100 + number, layers=1)
    own = {tensor.name: tensor for tensor in other.tensors}
    tensors = [own[tensor.name] if tensor.name == OWN else tensor for tensor in base.tensors]
    return replace(base, tensors=type(base.tensors)(tensors), grams=type(base.grams)())


def without_digests(model: Fingerprint) -> Fingerprint:
    tensors = [replace(tensor, digest=b"", turned_digest=b"", casts={}) for tensor in model.tensors]
    return replace(model, tensors=type(model.tensors)(tensors))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("family") / "registry"
    with Registry.open(place) as opened, opened.together():
        for number in range(FAMILY):
            opened.register(sign(member(number)), name=f"family/m{number}")
    return place


@pytest.mark.parametrize("digests", [True, False])
@pytest.mark.parametrize("number", [0, FAMILY - 1])
def test_one_of_a_large_family_is_told_by_what_it_has_alone(registry: Path, number: int, digests: bool) -> None:
    suspect = member(number) if digests else without_digests(member(number))
    with Registry.open(registry) as opened:
        first, *rest = find_candidates(opened, suspect, 20)
    assert first.model.name == f"family/m{number}"
    assert len(rest) == 19
    assert rest[0].votes < first.votes / 2


def test_what_a_whole_family_has_still_finds_some_of_it(registry: Path) -> None:
    whole = member(0)
    for suspect in (whole, without_digests(whole)):
        tensors = [tensor for tensor in suspect.tensors if tensor.name != OWN]
        with Registry.open(registry) as opened:
            assert len(find_candidates(opened, replace(suspect, tensors=type(whole.tensors)(tensors)), 20)) == 20


def test_the_vectors_of_what_a_whole_family_has_are_not_searched(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    search = Registry.search

    def counting(self: Registry, queries, n: int):
        asked.append(len(queries))
        return search(self, queries, n)

    monkeypatch.setattr(Registry, "search", counting)
    with Registry.open(registry) as opened:
        find_candidates(opened, member(3), 20)
    assert set(asked) == {1}


def test_a_network_of_small_matrices_is_found_by_their_digests(tmp_path: Path) -> None:
    def weights(seed: int) -> dict[str, np.ndarray]:
        random = np.random.default_rng(seed)
        return {f"layer{at}.weight": random.standard_normal((20, 20)).astype(np.float32) for at in range(4)}

    with Registry.open(tmp_path / "registry") as registry:
        for seed in range(3):
            save_file(weights(seed), tmp_path / "model.safetensors")
            with open_checkpoint(tmp_path / "model.safetensors") as checkpoint:
                registry.register(sign(fingerprint(checkpoint)), name=f"org/m{seed}")
        save_file({f"renamed{at}": w for at, w in enumerate(weights(1).values())}, tmp_path / "suspect.safetensors")
        (match,) = scan_path(registry, tmp_path / "suspect.safetensors").matches
        assert (match.model, match.relation) == ("org/m1", Relation.REFORMATTED)
        save_file(weights(9), tmp_path / "stranger.safetensors")
        assert not scan_path(registry, tmp_path / "stranger.safetensors").matches
