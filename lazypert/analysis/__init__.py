"""Statistics of genes over all cells."""
