"""Programs that feed damaged files to the readers."""
