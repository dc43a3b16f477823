"""What moves with the residual stream when it is rotated or permuted: frames, and samples of neurons and channels."""
