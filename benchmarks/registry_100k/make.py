"""Makes the registry: signatures of small synthetic models through the public interface, many at a time."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from benchmarks.synthetic import Maker
from fingerprint.vocabulary import Axis, Role
from signatures.registry import Registry
from signatures.signature import decode, signed_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fingerprint.records import Fingerprint

TOGETHER = 1000
OF_FAMILY = 10**7
"""Numbers of models from here on lend a tensor to the members of the family."""
WIDTH, TOKENS = 64, 512


def model(number: int) -> Fingerprint:
    """One layer of attention, embeddings and a norm: five matrices with sketches, six tensors."""
    make = Maker(number)
    token = ((Axis.TOKEN, 0), (Axis.RESIDUAL, 1))
    tensors = [make.matrix("embed", Role.TOKEN_EMBEDDING, None, (TOKENS, WIDTH), token)]
    for word, role in (("q", Role.QUERY), ("k", Role.KEY), ("v", Role.VALUE), ("o", Role.ATTENTION_OUTPUT)):
        tensors.append(make.matrix(f"layers.0.{word}", role, 0, (WIDTH, WIDTH), ()))
    tensors.append(make.vector("layers.0.norm", WIDTH, 0))
    return make.fingerprint(tensors, [])


def member(number: int) -> Fingerprint:
    """One of a family that has every tensor in common but one, as where all but one is frozen in fine-tuning."""
    base = model(OF_FAMILY - 1)
    own = {tensor.name: tensor for tensor in model(OF_FAMILY + number).tensors}
    tensors = tuple(own[tensor.name] if tensor.name == "layers.0.o" else tensor for tensor in base.tensors)
    return replace(base, tensors=tensors)


def tuned(base: Fingerprint, seed: int, cosine: float = 0.97) -> Fingerprint:
    """A fine-tune of ``base``, as far as sketches and digests tell it."""
    random = np.random.default_rng(seed)
    tensors = []
    for tensor in base.tensors:
        sketch = tensor.sketch
        if sketch is not None:
            other = random.standard_normal(sketch.shape, np.float32)
            other *= np.float32(np.linalg.norm(sketch) / np.linalg.norm(other))
            sketch = np.float32(cosine) * sketch + np.float32(np.sqrt(1 - cosine**2)) * other
        tensors.append(replace(tensor, sketch=sketch, digest=random.bytes(32), casts={}))
    return replace(base, tensors=tuple(tensors))


def signature(number: int) -> bytes:
    """The file of the signature of a model."""
    return signed_bytes(model(number))


def fill(folder: Path, models: int, report: Callable[[str], None]) -> dict[str, float]:
    """Register ``models`` models; returns seconds and the size of a signature."""
    started, sizes = time.perf_counter(), 0
    with Registry.open(folder) as registry:
        held = registry.count()
        made = _signatures(range(held, models))
        for start in range(held, models, TOGETHER):
            with registry.together():
                for number in range(start, min(start + TOGETHER, models)):
                    data = next(made)
                    sizes += len(data)
                    registry.register(decode(data), name=f"org{number % 97}/model-{number}")
            if (start // TOGETHER) % 10 == 9:
                report(f"{start + TOGETHER:,} models are registered")
    return {"seconds": time.perf_counter() - started, "bytes of a signature": sizes / max(models - held, 1)}


def _signatures(numbers: range) -> Iterator[bytes]:
    if len(numbers) < TOGETHER:
        yield from map(signature, numbers)
        return
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for start in range(0, len(numbers), TOGETHER):
            yield from pool.map(signature, numbers[start : start + TOGETHER], chunksize=50)
