"""Convert source files into a store."""
