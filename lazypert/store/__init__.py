"""The store format on disk, and reading it."""
