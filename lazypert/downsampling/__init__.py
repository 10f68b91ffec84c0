"""Differentiable read downsampling in JAX."""
