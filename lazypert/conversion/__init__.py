"""From source files to a store."""
