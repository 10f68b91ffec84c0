"""Helpers that know nothing of screens."""
