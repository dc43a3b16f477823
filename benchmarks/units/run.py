"""Command: train small convolutional and recurrent networks, rewrite and damage them, scan them end to end.

Of each kind the first two networks are registered. Suspects of the first one, rewritten (each checked to compute the
same) and then damaged, must be found; rewrites of all others, which are not registered, must not be.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from threadpoolctl import threadpool_limits

from benchmarks.lineage import derive_ops as ops
from benchmarks.lineage.derive_cases import Names
from benchmarks.lineage.derive_write import disguise, write_file
from benchmarks.units.networks import CHANNELS, STEPS, Kind, Weights, train
from benchmarks.units.rewrites import REWRITES, halve_channels, halve_units, rewrite, tuned
from benchmarks.zoo.models import generator
from fingerprint.assemble import fingerprint
from fingerprint.checkpoint import open_checkpoint
from signatures.registry import Registry
from signatures.report import Confidence, Verdict
from signatures.scan import scan_path
from signatures.signature import sign

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

TRAINED = {Kind.CNN: 12, Kind.LSTM: 10, Kind.GRU: 4}
REGISTERED = 2


@dataclass(frozen=True, slots=True)
class Damage:
    """What is done after the rewrite; the tensors that are written are of ``dtype``."""

    name: str
    apply: Callable[[Weights, Kind, str], Weights]
    dtype: torch.dtype = torch.float32


def _rounded(bits: int) -> Callable[[Weights, Kind, str], Weights]:
    """Round each row in groups of 32."""

    def change(weights: Weights, _: Kind, __: str) -> Weights:
        out = {}
        for name, w in weights.items():
            if w.ndim < 2:
                out[name] = w
                continue
            flat = w.flatten(1)
            blocks = torch.nn.functional.pad(flat, (0, -flat.shape[1] % 32)).view(len(flat), -1, 32)
            low, high = blocks.amin(2, keepdim=True), blocks.amax(2, keepdim=True)
            scale = (high - low).clamp(min=1e-12) / ((1 << bits) - 1)
            out[name] = (
                (((blocks - low) / scale).round() * scale + low).view(len(flat), -1)[:, : flat.shape[1]].view_as(w)
            )
        return out

    return change


def damages() -> list[Damage]:
    return [
        Damage("intact", lambda w, _, __: w),
        Damage("fine-tuned", lambda w, kind, key: tuned(w, kind, key, steps=40, rate=1e-3)),
        Damage("continued", lambda w, kind, key: tuned(w, kind, key, steps=200, rate=4e-3)),
        Damage("bf16", lambda w, _, __: w, torch.bfloat16),
        Damage("8bit", _rounded(8)),
        Damage("4bit", _rounded(4)),
        Damage("noise-5", lambda w, _, key: ops.add_noise(w, 0.05, generator(f"noise/{key}"))),
        Damage("sparse-50", lambda w, _, __: ops.prune_small(w, 0.5)),
        Damage("units-halved", lambda w, kind, _: halve_channels(w) if kind is Kind.CNN else halve_units(w, kind)),
    ]


def build(
    folder: Path, kind: Kind, count: int, *, channels: Sequence[int] = CHANNELS, steps: int = STEPS
) -> list[Path]:
    """Train networks that are not there yet; those of other ``channels`` than the usual have these in their names."""
    folder.mkdir(parents=True, exist_ok=True)
    named = kind.value if tuple(channels) == CHANNELS else "-".join([kind.value, *map(str, channels[1:]), "seed"])
    paths = [folder / f"{named}-{i}.safetensors" for i in range(count)]
    for i, path in enumerate(paths):
        if not path.exists():
            save_file(train(kind, f"{named}/seed{i}", steps=steps, channels=channels), path)
    return paths


def write_disguised(path: Path, weights: Weights, dtype: torch.dtype, key: str) -> None:
    """Write tensors under random names in random order."""
    shuffler = random.Random(key)
    items = disguise({name: w.contiguous().to(dtype) for name, w in weights.items()}, Names.SCRAMBLED, shuffler)
    shuffler.shuffle(items)
    write_file(path, items)


def suspects(paths: list[Path], kind: Kind) -> Iterator[tuple[str, str, str, Weights, torch.dtype, float]]:
    """Which part it belongs to, rewrite, damage, tensors, their type, and the difference of outputs."""
    last = list(REWRITES[kind])[-1]
    names = [name for name in REWRITES[kind] if name not in {"none", last}]
    full = [last] if kind is Kind.CNN else [names[-2], last]
    for name, steps in REWRITES[kind].items():
        made, error = rewrite(load_file(paths[0]), kind, steps, f"{kind}/{name}")
        for damage in damages() if name in full else damages()[:1]:
            key = f"{kind}/{name}/{damage.name}"
            yield "descends", name, damage.name, damage.apply(made, kind, key), damage.dtype, error
    for number, path in enumerate(paths[REGISTERED:]):
        for name in ("none", *full):
            made, error = rewrite(load_file(path), kind, REWRITES[kind][name], f"{kind}/other/{number}/{name}")
            yield "look-alike", name, "intact", made, torch.float32, error


def run(zoo: Path, kinds: list[Kind], report: Callable[[str], None], counts: dict[Kind, int]) -> list[dict[str, Any]]:
    """All rows."""
    rows: list[dict[str, Any]] = []
    for kind in kinds:
        paths = build(zoo, kind, counts[kind])
        with tempfile.TemporaryDirectory() as folder, Registry.open(Path(folder) / "registry", create=True) as registry:
            for path in paths[:REGISTERED]:
                with open_checkpoint(path) as checkpoint:
                    registry.register(sign(fingerprint(checkpoint, workers=1)), name=path.stem)
            for part, name, damage, weights, dtype, error in suspects(paths, kind):
                target = Path(folder) / "suspect.safetensors"
                write_disguised(target, weights, dtype, f"{kind}/{name}/{damage}")
                found = scan_path(registry, target)
                best = found.matches[0] if found.matches else None
                sure = (
                    found.verdict is Verdict.MATCH and best is not None and best.confidence is not Confidence.POSSIBLE
                )
                right = sure and best is not None and best.model == paths[0].stem and len(found.matches) == 1
                wanted = right if part == "descends" else found.verdict is Verdict.NO_MATCH
                even = {} if best is None else {one.test: one for one in best.evidence}
                rows.append(
                    {
                        "part": part,
                        "kind": kind.value,
                        "rewrite": name,
                        "damage": damage,
                        "verdict": found.verdict.value,
                        "confidence": "" if best is None else best.confidence.value,
                        "first": "" if best is None else best.model,
                        "log10_p": 0.0 if best is None else best.log10_p,
                        "test": "" if best is None else min(best.evidence, key=lambda one: one.log10_p).test,
                        "concordance": float(even["even"].statistic) if "even" in even else 0.0,
                        "relation": "" if best is None else best.relation.value,
                        "undone": [] if best is None else list(best.undone),
                        "found": bool(wanted),
                        "error": error,
                    }
                )
                report(json.dumps(rows[-1]) + ("" if wanted else "   <<<"))
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 0 if everything came out as it must."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.units.run", description=__doc__)
    parser.add_argument("--zoo", type=Path, default=Path(__file__).parents[2] / ".cache" / "units")
    parser.add_argument("--kind", action="append", choices=[one.value for one in Kind])
    parser.add_argument("--out", type=Path, help="a JSON file of all rows")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    kinds = [Kind(one) for one in options.kind or list(Kind)]
    with threadpool_limits(1):
        rows = run(options.zoo, kinds, lambda line: print(line, file=sys.stderr, flush=True), TRAINED)
    if options.out is not None:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")
    right = sum(row["found"] for row in rows)
    print(f"{right} of {len(rows)} as they must be")
    return 0 if right == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
