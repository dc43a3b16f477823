"""Small language models of known descent: the truth that the detector is scored on. Knows nothing of the product."""
