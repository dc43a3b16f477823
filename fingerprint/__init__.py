"""Measure weights: bytes, checkpoint, canonical tensors, statistics and sketches, fingerprint, comparison of two."""
