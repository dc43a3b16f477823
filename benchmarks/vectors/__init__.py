"""The index at millions of vectors: how long it takes to make, how large it is, how fast it answers, what it misses."""
