"""Helpers that know nothing about screens."""
