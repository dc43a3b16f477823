"""Identify weights: signature files, registry, index, search, evidence, verdict, report."""
