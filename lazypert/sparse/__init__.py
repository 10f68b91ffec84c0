"""Sparse matrices in memory."""
