"""A registry keeps models, names and digests, whole or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks.synthetic import small_model
from fingerprint.errors import NameTakenError, RegistryError, UnknownModelError, UsageError
from signatures.codec import decode_vectors
from signatures.registry import Registry
from signatures.signature import encode, sign

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(tmp_path / "registry") as found:
        yield found


def test_a_registered_model_is_found_by_name_and_digest(registry: Registry) -> None:
    signature = sign(small_model(1))
    record = registry.register(signature, name="org/model", owner="Org", note="two\nlines")
    assert registry.models() == (record,)
    assert registry.get("ORG/model") == record
    assert (record.name, record.owner, record.aliases, record.origin) == ("org/model", "Org", (), "local")
    assert registry.load_signature(record).identity == signature.identity
    tensor = signature.fingerprint.tensors[3]
    hits = registry.lookup_digests([tensor.digest, tensor.casts["F8_E4M3"], bytes(32)])
    assert [(hit.model, hit.position, hit.kind) for hit in hits] == [(record.id, 3, "F8_E4M3"), (record.id, 3, "exact")]


def test_the_same_weights_again_change_nothing(registry: Registry) -> None:
    first = registry.register(sign(small_model(1)), name="org/model", owner="Org")
    assert registry.register(sign(small_model(1)), name="org/model", owner="Other") == first
    assert registry.models() == (first,)


def test_another_name_for_the_same_weights_is_an_alias(registry: Registry) -> None:
    registry.register(sign(small_model(1)), name="org/model")
    record = registry.register(sign(small_model(1)), name="org/other")
    assert (record.name, record.aliases) == ("org/model", ("org/other",))
    registry.remove("org/model")
    assert registry.get("org/other").aliases == ()


def test_a_name_is_not_given_to_other_weights(registry: Registry) -> None:
    first = registry.register(sign(small_model(1)), name="org/model")
    with pytest.raises(NameTakenError, match="other weights"):
        registry.register(sign(small_model(2)), name="org/model")
    assert registry.models() == (first,)
    second = registry.register(sign(small_model(2)), name="org/model", replace=True)
    assert registry.models() == (second,)
    assert second.id != first.id


def test_a_search_sees_every_registered_model(registry: Registry, tmp_path: Path) -> None:
    signatures = [sign(small_model(seed)) for seed in range(4)]
    records = [registry.register(one, name=f"org/m{i}") for i, one in enumerate(signatures)]
    for record, signature in zip(records, signatures, strict=True):
        positions, vectors = decode_vectors(encode(signature), path="test")
        hits = registry.search(vectors, 2)
        assert np.all(hits.models[:, 0] == record.id)
        assert np.all(hits.positions[:, 0] == positions)
    registry.remove("org/m2")
    _, vectors = decode_vectors(encode(signatures[2]), path="test")
    assert records[2].id not in registry.search(vectors, 4).models
    assert registry.index_status().current
    assert registry.check_index().problems == ()
    assert registry.check() == ()


def test_what_is_not_there_is_said(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError):
        registry.get("org/absent")
    with pytest.raises(UnknownModelError):
        registry.remove("org/absent")
    with pytest.raises(RegistryError, match="there is no registry"):
        Registry.open(tmp_path / "none", create=False)
    with pytest.raises(UsageError, match="not a name"):
        registry.register(sign(small_model(1)), name="../evil")
