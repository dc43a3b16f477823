"""How much a deep comparison leaves: of relatives after every rewrite, and between independent seeds."""
