"""Aligned lines of text, without what a terminal would take for commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lazypert.store.store import Store


def printable(text: object) -> str:
    """Text in which control characters, which labels and names of files may hold, are escaped; lines stay lines.

    Examples
    --------
    >>> printable("TP53\\x1b[2J")
    'TP53\\\\x1b[2J'
    """
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode() for char in str(text)
    )


def printable_line(text: object) -> str:
    """As `printable`, but line breaks are escaped too."""
    return printable(text).replace("\n", "\\n")


def print_field(name: str, value: object) -> None:
    """Print a name and a value."""
    print(f"{name:<14} {printable_line(value)}")


def print_warnings(store: Store) -> None:
    """Print the warnings that a conversion has recorded in a store."""
    for warning in store.attrs["warnings"]:
        print_field("warning", warning)
