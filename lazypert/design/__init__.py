"""Selecting cells: splits, controls, sentences, experiments. Pure: no I/O."""
