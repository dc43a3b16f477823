"""Lists of checkpoints through every executor with a worker killed midway, and vectors on every engine."""
