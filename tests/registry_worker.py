"""One of several processes that use a registry at once: registers its own and shared models, and searches."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from benchmarks.synthetic import small_model
from signatures.codec import decode_vectors
from signatures.registry import Registry
from signatures.signature import encode, sign


def main(folder: Path, number: int, rounds: int) -> None:
    signatures = {seed: sign(small_model(seed, layers=1)) for seed in (0, *(100 * number + i for i in range(rounds)))}
    with Registry.open(folder) as registry:
        for seed, signature in signatures.items():
            name = "shared/model" if seed == 0 else f"p{number}/m{seed}"
            record = registry.register(signature, name=name)
            _, vectors = decode_vectors(encode(signature), path="worker")
            hits = registry.search(vectors, 1)
            if not np.any(hits.models == record.id, axis=1).all():
                raise SystemExit(f"{name} was not found after it was registered")
            if registry.load_signature(record).identity != signature.identity:
                raise SystemExit(f"{name} has another signature")
            if not registry.lookup_digests([signature.fingerprint.tensors[0].digest]):
                raise SystemExit(f"{name} was not found by digest")
        registry.register(signatures[0], name=f"p{number}/alias")
        registry.remove(f"p{number}/m{100 * number}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
