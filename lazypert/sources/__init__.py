"""Screens as sources of cells."""
