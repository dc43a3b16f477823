"""The lineage benchmark: suspects of known descent are derived, scanned in another process, and scored."""
