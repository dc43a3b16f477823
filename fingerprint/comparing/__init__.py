"""Compare two fingerprints: a file a test, and all of them together in ``comparison``."""
