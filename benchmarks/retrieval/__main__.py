"""Command: a registry of a thousand models, three thousand suspects, and whether the index proposes their relatives.

Writes ``retrieval.md`` and ``retrieval.json`` to OUT (``retrieval-10000.md`` for 10,000 models, and so on). Exit status
1 if the index misses too many or is too slow.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from benchmarks.retrieval.measure import measure
from benchmarks.retrieval.report import as_mapping, to_json, to_markdown
from benchmarks.synthetic import llama_8b

ROOT = Path(__file__).parents[2]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retrieval", description=__doc__)
    parser.add_argument("--zoo", type=Path, default=ROOT / ".cache" / "zoo", help="trained models, where there are any")
    parser.add_argument("--family", action="append", help="families of the trained models: a, unless it is given")
    parser.add_argument("--out", type=Path, required=True, help="folder for the page and the numbers")
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--suspects", type=int, default=3000)
    parser.add_argument("--rewritten", type=int, default=0, help="how many of them are trained models rewritten")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, help="a folder to keep the registry in, or that a former run kept one in")
    parser.add_argument("--quick", action="store_true", help="40 invented models and 72 suspects")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() if options.work is None else nullcontext(options.work) as folder:
        result = measure(
            None if options.quick else options.zoo,
            Path(folder),
            models=40 if options.quick else options.models,
            suspects=72 if options.quick else options.suspects,
            rewritten=0 if options.quick else options.rewritten,
            families=options.family or ["a"],
            seed=options.seed,
            large=() if options.quick else (("suspect of 8B parameters", llama_8b()),),
            report=lambda line: print(f"{time.monotonic() - started:7.1f}s {line}", file=sys.stderr, flush=True),
        )
    options.out.mkdir(parents=True, exist_ok=True)
    name = "retrieval-quick" if options.quick else "retrieval"
    if options.models != parser.get_default("models") and not options.quick:
        name += f"-{options.models}"
    (options.out / f"{name}.json").write_text(to_json(result))
    page = to_markdown(result)
    (options.out / f"{name}.md").write_text(page)
    print(page)
    return 0 if as_mapping(result)["right"] else 1


if __name__ == "__main__":
    sys.exit(main())
