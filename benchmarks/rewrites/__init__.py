"""Function-preserving rewrites of the zoo's models, checked to compute the same, and damages on top of them."""
