"""Benchmarks and demonstrations; nothing here is installed with the package."""
