"""Command: make suspects of the zoo's models, in disguise, and one file with the truth about them.

OUT/suspects holds the suspects, OUT/references what must be registered beside models of the zoo, and
OUT/truth/truth.json what is true of each suspect. A scanner is shown the first two only.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.lineage.derive_cases import Case, Kit, Link, Made
from benchmarks.lineage.derive_ops import layer_of, least_squares
from benchmarks.lineage.derive_table import all_cases
from benchmarks.lineage.derive_write import Item, disguise, shards, write_file, write_folder
from benchmarks.zoo.recipes import FAMILIES, Spec, family
from benchmarks.zoo.store import weights_path

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SCHEMA = "lineage-truth/1"


def kits(zoo: Path, specs: Sequence[Spec], key: str) -> list[Kit]:
    """Return a kit for each shape of a family that has a base model A; populations have none."""
    bases = [s for s in specs if s.kind == "base" and s.id.endswith("-A")]
    available = frozenset(s.id for s in specs)

    def kit(base: Spec) -> Kit:
        style, width = base.shape.style, base.shape.width
        others = [s for s in bases if s is not base]
        of_style = [s.id for s in others if s.shape.style is not style and s.shape.width == width]
        of_width = [s.id for s in others if s.shape.style is style and s.shape.width != width]
        strangers = {"other-style": of_style[:1], "other-width": of_width[:1]}
        return Kit(
            folder=zoo,
            stem=base.id.removesuffix("-A"),
            shape=base.shape,
            available=available,
            strangers={name: found[0] for name, found in strangers.items() if found},
            key=key,
        )

    return [kit(base) for base in bases]


def derive(kit: Kit, case: Case, out: Path) -> tuple[str, dict[str, object]]:
    """Make and write one suspect, and its reference if it has one; returns its path below OUT and the truth."""
    made = case.build(kit, kit.random(case.name))
    # Names are drawn apart from weights, so that a case keeps its weights when the disguise changes.
    shuffler = random.Random(f"{kit.key}/{kit.stem}/{case.name}/names")
    target = out / "suspects" / f"{shuffler.getrandbits(48):012x}"
    items = disguise({name: _cast(w, case.dtype) for name, w in made.tensors.items()}, case.names, shuffler)
    runs = shards(items, case.shards)
    if not case.sorted_names:
        for run in runs:
            shuffler.shuffle(run)
    if case.only_shard is not None:
        runs = [runs[case.only_shard]]
    if len(runs) == 1:
        target = target.with_suffix(".safetensors")
        write_file(target, runs[0])
    else:
        write_folder(target, runs)
    registered = [kit.id(model) for model in case.registered]
    if case.reference is not None:
        registered.append(_write_reference(kit, case, out))
    written = [item for run in runs for item in run]
    return str(target.relative_to(out)), _truth(kit, case, made, written, registered)


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if tensor.dtype == torch.float32 else tensor


def _write_reference(kit: Kit, case: Case, out: Path) -> str:
    assert case.reference is not None
    name = f"{kit.stem}-A-with-{case.name}"
    items = [Item(n, n, w) for n, w in sorted(case.reference(kit).items())]
    write_file(out / "references" / f"{name}.safetensors", items)
    return name


def _truth(kit: Kit, case: Case, made: Made, written: Sequence[Item], registered: Sequence[str]) -> dict[str, object]:
    parents = [kit.id(model) for model in case.parents]
    links = {model: Link.LINEAGE if model in parents else Link.NONE for model in registered}
    links.update({kit.id(model): link for model, link in case.links.items()})
    layer_map = made.layers
    if layer_map is None:
        present = sorted({n for item in written if (n := layer_of(item.was)) is not None})
        layer_map = tuple((n, parent, n) for parent in parents for n in present)
    return {
        "case": case.name,
        "done": case.done,
        "stem": kit.stem,
        "style": kit.shape.style.value,
        "width": kit.shape.width,
        "names": case.names.value,
        "verdict": case.verdict.value,
        "relations": list(case.relations),
        "parents": parents,
        "registered": list(registered),
        "links": {model: link.value for model, link in links.items()},
        "layers": [{"suspect": n, "model": model, "layer": layer} for n, model, layer in layer_map],
        "mixtures": [_mixture(kit, made, base) for base in case.bases],
        "tensors": {item.name: item.was for item in written},
    }


def _mixture(kit: Kit, made: Made, base: Sequence[str]) -> dict[str, object]:
    coefficients, residual = least_squares(made.tensors, {kit.id(model): kit.model(model) for model in base})
    return {"coefficients": coefficients, "residual": residual}


def derive_all(
    zoo: Path,
    family_name: str,
    out: Path,
    *,
    quick: bool = False,
    seed: int = 1,
    models: Sequence[str] = ("*",),
    only: Sequence[str] = ("*",),
    report: Callable[[str], None] = lambda _: None,
) -> Path:
    """Make every case of every shape that match the globs `models` and `only`; returns the path of the truth.

    out must not hold suspects yet. Raises FileExistsError, FileNotFoundError (a model is not in the zoo), ValueError.
    """
    specs = family(family_name, quick=quick)
    chosen = [kit for kit in kits(zoo, specs, f"derive/{seed}") if _matches(kit.stem, models)]
    jobs = [(kit, case) for kit in chosen for case in all_cases() if _matches(case.name, only) and case.is_for(kit)]
    if not jobs:
        raise ValueError(f"no case is named like {' or '.join(only)} for models named like {' or '.join(models)}")
    # Before anything is written: a run that dies half-way leaves suspects without their truth.
    needed = {model for kit, case in jobs for model in case.models(kit)}
    absent = sorted(model for model in needed if not weights_path(zoo, model).exists())
    if absent:
        raise FileNotFoundError(f"{zoo} lacks {', '.join(absent)}: train them with python -m benchmarks.zoo")
    for part in ("suspects", "references", "truth"):
        (out / part).mkdir(parents=True, exist_ok=False)
    suspects: dict[str, object] = {}
    for kit, case in jobs:
        path, suspects_truth = derive(kit, case, out)
        if path in suspects:
            raise FileExistsError(f"two suspects are both named {path}")
        suspects[path] = suspects_truth
        report(f"{kit.stem} {case.name}")
    truth = {"schema": SCHEMA, "family": family_name, "quick": quick, "seed": seed, "suspects": suspects}
    path_of_truth = out / "truth" / "truth.json"
    path_of_truth.write_text(json.dumps(truth, indent=1))
    return path_of_truth


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lineage.derive", description=__doc__)
    parser.add_argument("--zoo", type=Path, default=Path(__file__).parents[2] / ".cache" / "zoo")
    parser.add_argument("--family", choices=FAMILIES, default="a")
    parser.add_argument("--out", type=Path, required=True, help="a folder without suspects in it")
    parser.add_argument("--models", action="append", metavar="GLOB", help="shapes, such as 'a-llama-*'")
    parser.add_argument("--only", action="append", metavar="GLOB", help="cases")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="suspects of the tiny models of the quick zoo")
    parser.add_argument("--list", action="store_true", help="list the cases")
    options = parser.parse_args(arguments)
    if options.list:
        for case in all_cases():
            print(f"{case.name}\t{case.verdict.value}\t{','.join(case.relations) or '-'}\t{case.done}")
        return 0
    torch.set_num_threads(1)
    try:
        truth = derive_all(
            options.zoo,
            options.family,
            options.out,
            quick=options.quick,
            seed=options.seed,
            models=options.models or ["*"],
            only=options.only or ["*"],
            report=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except (FileExistsError, FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(truth)
    return 0


if __name__ == "__main__":
    sys.exit(main())
