"""The same real weights in every container and quantisation, each written by the library that produces it."""
