"""A hub of models on this machine, whose repositories are invented as they are read."""
