"""A registry of very many models: what one more registration, a scan, a listing and a check cost."""
