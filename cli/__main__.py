"""``python -m cli`` is ``fp``."""

from __future__ import annotations

from cli.main import main

main()
