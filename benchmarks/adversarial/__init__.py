"""What forging a registration, framing an innocent and evading the tests cost, and what is reported of each."""
