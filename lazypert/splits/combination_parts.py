"""The parts of a combination's label: ``A+B`` is ``A`` and ``B``, in no order."""

from __future__ import annotations

from lazypert.errors import ConfigError


def parts_of(label: str, separator: str, control: str | None) -> tuple[str, ...]:
    """Return the sorted parts of a label; the control is not one, and a part that is repeated counts once.

    Raises
    ------
    ConfigError
        If a part is empty.

    Examples
    --------
    >>> parts_of("B+A", "+", "ctrl"), parts_of("A+ctrl", "+", "ctrl")
    (('A', 'B'), ('A',))
    """
    parts = label.split(separator)
    if not all(parts):
        raise ConfigError(
            f"separator: got {separator!r}, which leaves an empty part in the label {label!r}; expected the text "
            "between the names of the parts."
        )
    return tuple(sorted(set(parts) - {control}))
