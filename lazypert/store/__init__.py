"""The on-disk store format, and how it is read."""
