"""Aligned lines of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lazypert.store.store import Store


def print_field(name: str, value: object) -> None:
    """Print a name and a value."""
    print(f"{name:<14} {value}")


def print_warnings(store: Store) -> None:
    """Print the warnings that a conversion has recorded in a store."""
    for warning in store.attrs["warnings"]:
        print_field("warning", warning)
