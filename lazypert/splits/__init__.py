"""Which cells train, validate and test. Pure: no I/O."""
