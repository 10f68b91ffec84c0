"""Readers of source formats, found by lazypert through the entry-point group ``lazypert.converters``."""
