"""Command: ``run`` the lineage benchmark, or ``freeze`` the rules before the second family is scored."""

from __future__ import annotations

import sys

from benchmarks.lineage import run
from benchmarks.lineage.freeze import FROZEN, freeze


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    if arguments[:1] == ["run"]:
        return run.main(arguments[1:])
    if arguments == ["freeze"]:
        try:
            frozen = freeze()
        except FileExistsError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(f"{FROZEN.name}: {len(frozen['files'])} files of rules as of {frozen['date']}")
        return 0
    print("usage: python -m benchmarks.lineage {run ...|freeze}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
