"""What tensors do in their network, read from names (tables of patterns) and from shapes; never from values."""
