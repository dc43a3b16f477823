"""Command: train small convolutional and recurrent networks, rewrite and damage them, scan them end to end.

Of each recipe the first two networks are registered. Suspects of the first one, rewritten (each checked to compute the
same) and then damaged, must be found; those of networks that are not registered, and of tensors that were drawn or
shuffled, must not be. A fine-tune of the first one is registered beside it; suspects of another fine-tune must be found
as the first one's and not as descendants of that sibling.
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
from benchmarks.units.networks import CHANNELS, OTHER_TEXT, PICTURES, RATE, STEPS, Kind, Weights, train
from benchmarks.units.rewrites import (
    REWRITES,
    drop_layer,
    halve_channels,
    halve_units,
    random_like,
    rewrite,
    shuffle,
    spare_layer,
    tuned,
)
from benchmarks.zoo.models import generator
from fingerprint.assemble import fingerprint
from fingerprint.checkpoint import open_checkpoint
from signatures.registry import Registry
from signatures.report import Confidence, Link, Verdict
from signatures.scan import scan_path
from signatures.signature import sign

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from signatures.report import Report

REGISTERED = 2
BASE, SIBLING = "base", "sibling"
"""Names of the first network and of a registered fine-tune of it."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Networks of one shape, ``count`` seeds of them."""

    name: str
    kind: Kind
    count: int
    channels: tuple[int, ...] = CHANNELS


RECIPES = (
    Recipe("cnn", Kind.CNN, 12),
    Recipe("cnn-deeper", Kind.CNN, 4, (3, 32, 48, 48, 64)),
    Recipe("resnet", Kind.RESNET, 10),
    Recipe("lstm", Kind.LSTM, 10),
    Recipe("gru", Kind.GRU, 4),
)
"""No convolution of the first one puts out as many channels as it reads: only of the deeper one can one be left out."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """``part``: descends, sibling or look-alike. ``error``: see ``rewrite``; ``source``: what was rewritten."""

    part: str
    source: str
    rewrite: str
    damage: Damage
    made: Weights
    error: float


@dataclass(frozen=True, slots=True)
class Damage:
    """What is done after the rewrite; the tensors that are written are of ``dtype``."""

    name: str
    apply: Callable[[Weights, Kind, str], Weights]
    dtype: torch.dtype = torch.float32
    fits: Callable[[Weights, Kind], bool] = lambda _, __: True


def _merged(weights: Weights, kind: Kind, key: str) -> Weights:
    """Half of a fine-tune of what it became."""
    return ops.linear((weights, tuned(weights, kind, f"{key}/other", steps=40, rate=1e-3)), (0.5, 0.5))


def _can_drop(weights: Weights, kind: Kind) -> bool:
    return spare_layer(weights, kind) is not None


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
        Damage("continued", lambda w, kind, key: tuned(w, kind, key, steps=STEPS, rate=RATE, data=OTHER_TEXT)),
        Damage("bf16", lambda w, _, __: w, torch.bfloat16),
        Damage("8bit", _rounded(8)),
        Damage("4bit", _rounded(4)),
        Damage("noise-5", lambda w, _, key: ops.add_noise(w, 0.05, generator(f"noise/{key}"))),
        Damage("sparse-50", lambda w, _, __: ops.prune_small(w, 0.5)),
        Damage("merged", _merged),
        Damage(
            "layer-dropped", lambda w, kind, _: drop_layer(w, kind), fits=lambda w, k: spare_layer(w, k) is not None
        ),
        Damage(
            "units-halved", lambda w, kind, _: halve_channels(w, kind) if kind in PICTURES else halve_units(w, kind)
        ),
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


def suspects(networks: Sequence[Weights], tune: Weights, kind: Kind) -> Iterator[Suspect]:
    """All suspects of one recipe: of the first network, of a fine-tune of it, of others and of what no training made.

    Everything that the first network goes through, the fine-tune does and one of each kind of look-alikes.
    """
    last = list(REWRITES[kind])[-1]
    names = [name for name in REWRITES[kind] if name not in {"none", last}]
    full = [last] if kind in PICTURES else [names[-2], last]
    yield from _rewritten("descends", "A", networks[0], kind, list(REWRITES[kind]), full)
    yield from _rewritten("sibling", "A-fty", tune, kind, list(REWRITES[kind]), full)
    drawn, shuffled = (change(networks[0], generator(f"{kind}/stand-in")) for change in (random_like, shuffle))
    yield from _rewritten("look-alike", "A-drawn", drawn, kind, ["none", *full], full)
    yield from _rewritten("look-alike", "A-shuffled", shuffled, kind, ["none", *full], full)
    for number, weights in enumerate(networks[REGISTERED:], REGISTERED):
        damaged = full if number == REGISTERED else []
        yield from _rewritten("look-alike", f"seed{number}", weights, kind, ["none", *full], damaged)


def _rewritten(
    part: str, source: str, weights: Weights, kind: Kind, names: Sequence[str], damaged: Sequence[str]
) -> Iterator[Suspect]:
    for name in names:
        made, error = rewrite(weights, kind, REWRITES[kind][name], f"{kind}/{source}/{name}")
        for damage in damages() if name in damaged else damages()[:1]:
            if damage.fits(made, kind):
                yield Suspect(part, source, name, damage, made, error)


def score(report: Report, part: str) -> dict[str, Any]:
    """What a report says, and whether that is right: ``found``; ``accused``: whether the sibling is."""
    best = report.matches[0] if report.matches else None
    sure = report.verdict is Verdict.MATCH and best is not None and best.confidence is not Confidence.POSSIBLE
    links = {one.model: one.link.value for one in report.matches}
    accused = part == "sibling" and links.get(SIBLING) == Link.LINEAGE.value
    allowed = {BASE, SIBLING} if part == "sibling" else {BASE}
    right = sure and best is not None and best.model == BASE and links.keys() <= allowed and not accused
    even = {} if best is None else {one.test: one for one in best.evidence}
    return {
        "verdict": report.verdict.value,
        "confidence": "" if best is None else best.confidence.value,
        "first": "" if best is None else best.model,
        "log10_p": 0.0 if best is None else best.log10_p,
        "test": "" if best is None else min(best.evidence, key=lambda one: one.log10_p).test,
        "concordance": float(even["even"].statistic) if "even" in even else 0.0,
        "relation": "" if best is None else best.relation.value,
        "undone": [] if best is None else list(best.undone),
        "links": links,
        "accused": accused,
        "found": bool(report.verdict is Verdict.NO_MATCH if part == "look-alike" else right),
    }


def _register(registry: Registry, path: Path, name: str, base: str | None = None) -> None:
    with open_checkpoint(path) as checkpoint:
        registry.register(sign(fingerprint(checkpoint, workers=1)), name=name, base=base)


def _fine_tunes(zoo: Path, recipe: Recipe, path: Path) -> tuple[Path, Weights]:
    """A fine-tune of the first network as a file, and another one, on other text; both made if they are not there."""
    made = []
    for name, data in (("ftx", "a-y-small"), ("fty", "a-x-small")):
        target = zoo / f"{path.stem}-{name}.safetensors"
        if not target.exists():
            key = f"{recipe.name}/{name}"
            save_file(tuned(load_file(path), recipe.kind, key, steps=40, rate=1e-3, data=data), target)
        made.append(target)
    return made[0], load_file(made[1])


def alike(base: Weights, one: Weights, other: Weights) -> float:
    """Cosine of the changes that made two fine-tunes of ``base``: above 1/2 they are nearer to each other than to it.

    The last holds if both changes are equally large.
    """
    names = sorted(name for name, w in base.items() if w.dtype.is_floating_point)
    changes = [torch.cat([(tune[name] - base[name]).double().flatten() for name in names]) for tune in (one, other)]
    return float(torch.nn.functional.cosine_similarity(*changes, dim=0))


def run(
    zoo: Path, recipes: Sequence[Recipe], report: Callable[[str], None], *, steps: int = STEPS
) -> list[dict[str, Any]]:
    """All rows; networks that are not in ``zoo`` yet are trained for so many ``steps``."""
    rows: list[dict[str, Any]] = []
    for recipe in recipes:
        kind = recipe.kind
        paths = build(zoo, kind, recipe.count, channels=recipe.channels, steps=steps)
        sibling, tune = _fine_tunes(zoo, recipe, paths[0])
        cosine = alike(load_file(paths[0]), load_file(sibling), tune)
        with (
            tempfile.TemporaryDirectory() as folder,
            Registry.open(Path(folder) / "registry", create=True) as registry,
            Registry.open(Path(folder) / "relatives", create=True) as relatives,
        ):
            _register(registry, paths[0], BASE)
            _register(registry, paths[1], "other")
            _register(relatives, paths[0], BASE)
            _register(relatives, sibling, SIBLING, BASE)
            for one in suspects([load_file(path) for path in paths], tune, kind):
                target = Path(folder) / "suspect.safetensors"
                key = f"{recipe.name}/{one.source}/{one.rewrite}/{one.damage.name}"
                write_disguised(target, one.damage.apply(one.made, kind, key), one.damage.dtype, key)
                found = score(scan_path(registry if one.part == "descends" else relatives, target), one.part)
                about = {"kind": recipe.name, "part": one.part, "source": one.source, "alike": cosine}
                rows.append(about | {"rewrite": one.rewrite, "damage": one.damage.name} | found | {"error": one.error})
                report(json.dumps(rows[-1]) + ("" if found["found"] else "   <<<"))
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 0 if everything came out as it must."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.units.run", description=__doc__)
    parser.add_argument("--zoo", type=Path, default=Path(__file__).parents[2] / ".cache" / "units")
    parser.add_argument("--kind", action="append", choices=[one.name for one in RECIPES])
    parser.add_argument("--out", type=Path, help="a JSON file of all rows")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    recipes = [one for one in RECIPES if one.name in (options.kind or [recipe.name for recipe in RECIPES])]
    with threadpool_limits(1):
        rows = run(options.zoo, recipes, lambda line: print(line, file=sys.stderr, flush=True))
    if options.out is not None:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")
    right = sum(row["found"] for row in rows)
    print(f"{right} of {len(rows)} as they must be")
    return 0 if right == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
