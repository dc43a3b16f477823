"""Speak: the command line ``fp``."""
