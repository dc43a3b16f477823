"""Command: make checkpoints, time what is done with them, write the page.

Makes bf16 checkpoints in the shapes of published models, one that is deeper and narrower than any, a mixture of experts
of 45,000 small tensors and models of 20 MB in a temporary folder, deletes each when it is measured, and writes
``resources.md`` to OUT. Exit status 1 if a run fails, or takes 500 MB of anonymous memory.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import machine
from benchmarks.resources import race
from benchmarks.resources.measure import registered, unregistered
from benchmarks.resources.page import page
from benchmarks.resources.shapes import DEEP, MODELS, experts
from benchmarks.resources.weights import bytes_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.resources.measure import Row

STRANGERS = {"Llama-3.2-1B": 0, "Qwen3-4B": 20}
"""Those that are also scanned where they are not registered, and how many others are in one run more."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resources", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder of the page (default: standard output)")
    parser.add_argument("--only", nargs="*", choices=MODELS, default=list(MODELS), help="of these models alone")
    parser.add_argument("--runs", type=int, default=3, help="runs that medians are of")
    parser.add_argument("--no-others", action="store_true", help="leave out the deep model and the mixture of experts")
    parser.add_argument("--folder", type=Path, help="where the files are made (default: the system's temporary folder)")
    parser.add_argument("--modeldna", type=Path, help="that program, to be raced against")
    options = parser.parse_args(arguments)
    before, rounds = machine.Busy.now(), 2 * options.runs + 1
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        need = 1.2 * max([1 << 20, *(bytes_of(MODELS[one]) for one in options.only)])
        if shutil.disk_usage(folder).free < need:
            parser.error(f"{need / 1e9:.1f} GB must be free in {folder}")
        rows = []
        for row in measured(folder, options.only, options.runs, others=not options.no_others):
            rows.append(row)
            print(f"{row.title}: {row.failures or 'done'}", file=sys.stderr, flush=True)
        started, raced = race.measured(folder, rounds, options.modeldna)
    others = machine.Busy.now().others_since(before)
    about = {"runs": options.runs, "rounds": rounds, "machine": machine.described(), "others": others}
    text = page(rows, started, raced, **about)
    if options.out is None:
        print(text)
    else:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "resources.md").write_text(text, "utf-8")
    return 1 if any(row.failures for row in rows) else 0


def measured(folder: Path, wanted: list[str], runs: int, *, others: bool) -> Iterator[Row]:
    """All rows of the page."""
    yield from (registered(one, MODELS[one], folder, runs) for one in wanted)
    for one in (one for one in STRANGERS if one in wanted):
        yield from unregistered(f"{one}, not registered", MODELS[one], folder, runs, crowd=STRANGERS[one])
    if others:
        yield registered(f"{DEEP.layers} layers of width {DEEP.width}", DEEP, folder, runs)
        yield registered("mixture of experts", experts(), folder, 1)


if __name__ == "__main__":
    sys.exit(main())
