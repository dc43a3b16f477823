"""Command: train the models of a family that are not in the folder yet."""

from __future__ import annotations

import argparse
import fnmatch
import sys
import time
from pathlib import Path

import torch

from benchmarks.zoo.recipes import FAMILIES, STYLES, family
from benchmarks.zoo.store import build, is_cached


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument("--family", choices=(*FAMILIES, STYLES), default="a")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / ".cache" / "zoo")
    parser.add_argument("--only", action="append", metavar="GLOB", help="ids to train, with the parents they need")
    parser.add_argument("--quick", action="store_true", help="tiny models with the same relations, in seconds")
    parser.add_argument("--list", action="store_true", help="list the models and whether they are there")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    specs = family(options.family, quick=options.quick)
    patterns = options.only or ["*"]
    wanted = [spec.id for spec in specs if any(fnmatch.fnmatchcase(spec.id, p) for p in patterns)]
    if not wanted:
        parser.error(f"no model of family {options.family} is named like {' or '.join(patterns)}")
    if options.list:
        by_id = {spec.id: spec for spec in specs}
        for name in wanted:
            state = "there" if is_cached(options.out, by_id[name], by_id) else "absent"
            print(f"{name}\t{by_id[name].kind}\t{','.join(by_id[name].parents) or '-'}\t{state}")
        return 0
    torch.set_num_threads(options.threads)
    started = time.monotonic()
    build(
        options.out,
        specs,
        wanted,
        lambda line: print(f"{time.monotonic() - started:7.1f}s {line}", file=sys.stderr, flush=True),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
