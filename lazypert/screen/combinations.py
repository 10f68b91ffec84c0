"""The parts of a combination's label: ``A+B`` is ``A`` and ``B``, in no order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazypert.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lazypert.screen.roles import Roles


def parts_of(label: str, separator: str, roles: Roles) -> tuple[str, ...]:
    """Return the sorted parts of a label; controls are not parts, and a part that is repeated counts once.

    Raises
    ------
    ConfigError
        If a part is empty.

    Examples
    --------
    >>> from lazypert.screen.roles import Roles
    >>> roles = Roles(control_pert="ctrl")
    >>> parts_of("B+A", "+", roles), parts_of("A+ctrl", "+", roles)
    (('A', 'B'), ('A',))
    """
    return tuple(sorted({part for part in _divide(label, separator) if not roles.is_control_label(part)}))


def combined_label(label: str, roles: Roles) -> str:
    """Return the one label of all combinations with the same parts.

    Examples
    --------
    >>> from lazypert.screen.roles import Roles
    >>> roles = Roles(control_pert="ctrl", separator="+")
    >>> [combined_label(label, roles) for label in ("B+A", "ctrl+A", "ctrl", "ctrl+ctrl")]
    ['A+B', 'A', 'ctrl', 'ctrl']
    """
    if roles.separator is None or roles.separator not in label:
        return label
    return roles.separator.join(parts_of(label, roles.separator, roles)) or _divide(label, roles.separator)[0]


def controls_in(labels: Iterable[str], roles: Roles) -> tuple[str, ...]:
    """Return the sorted control labels that occur as parts of combinations.

    Examples
    --------
    >>> from lazypert.screen.roles import Roles
    >>> controls_in(["A+ctrl", "NT", "A+B"], Roles(control_pert=("ctrl", "NT"), separator="+"))
    ('ctrl',)
    """
    separator = roles.separator
    if separator is None:
        return ()
    parts = {part for label in labels if separator in label for part in label.split(separator)}
    return tuple(sorted(part for part in parts if roles.is_control_label(part)))


def _divide(label: str, separator: str) -> list[str]:
    parts = label.split(separator)
    if not all(parts):
        raise ConfigError(
            f"separator: got {separator!r}, which leaves an empty part in the label {label!r}; expected the text "
            "between the names of the parts."
        )
    return parts
