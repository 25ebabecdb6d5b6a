"""One module per op: its contract, checks, reference, derivatives and implementations."""
