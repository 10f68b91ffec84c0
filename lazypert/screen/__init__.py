"""Which cells a screen has, and how they are grouped. Pure: no I/O."""
