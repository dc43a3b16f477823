"""Both checkpoints at hand: permutations, scales, signs and rotation are recovered and undone; what is left is told."""
