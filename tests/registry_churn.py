"""A process that registers relatives of a model and removes them again, while others scan it."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.synthetic import small_model
from signatures.registry import Registry
from signatures.signature import sign

LAYERS = (2, 3, 4)


def main(folder: Path, rounds: int) -> None:
    signatures = {f"passing/of-{layers}": sign(small_model(0, layers=layers)) for layers in LAYERS}
    with Registry.open(folder, create=False) as registry:
        for _ in range(rounds):
            for name, signature in signatures.items():
                registry.register(signature, name=name)
            for name in signatures:
                registry.remove(name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
