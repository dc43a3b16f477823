"""Command: ``run`` the lineage benchmark, or ``freeze FAMILY``: the rules, before a held-out family is scored."""

from __future__ import annotations

import sys

from benchmarks.lineage import run
from benchmarks.lineage.freeze import HELD_OUT, freeze, frozen_file


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    if arguments[:1] == ["run"]:
        return run.main(arguments[1:])
    if arguments[:1] == ["freeze"] and len(arguments) == 2 and arguments[1] in HELD_OUT:
        path = frozen_file(arguments[1])
        try:
            frozen = freeze(path)
        except FileExistsError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(f"{path.name}: {len(frozen['files'])} files of rules as of {frozen['date']}")
        return 0
    print("usage: python -m benchmarks.lineage {run ...|freeze FAMILY}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
