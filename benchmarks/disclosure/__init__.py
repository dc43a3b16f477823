"""How much of the weights can be reconstructed from a signature."""
