"""Statistics of all cells in one pass over a matrix."""
