"""Command: write rewritten suspects."""

from __future__ import annotations

import sys

from benchmarks.rewrites.make import main

if __name__ == "__main__":
    sys.exit(main())
