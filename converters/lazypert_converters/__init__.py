"""lazypert's converters, found through the entry-point group ``lazypert.converters``."""
