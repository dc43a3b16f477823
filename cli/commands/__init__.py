"""The commands of ``fp``, one a file."""
