"""Screens as sources of cells for models."""
