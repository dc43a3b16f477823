"""Quantised storage seen as the float tensors that it stands for."""
