"""Arranging cells: control pools, sentences, experiments. Pure: no I/O."""
