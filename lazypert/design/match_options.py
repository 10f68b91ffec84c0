"""The options `match` and `fallback`. This module needs only the standard library."""

from __future__ import annotations

from typing import Any, Literal

from lazypert._internal.validation import require, require_choice, require_names
from lazypert.errors import ConfigError

Fallback = Literal["drop_last", "error"]

CELL_TYPE = "cell_type"
"""The first key, which is never dropped."""

UNUSABLE = {
    "perturbation": "anything but the perturbation, which controls never share with other cells",
    "dataset": "anything but the dataset, which is always matched. Leave it out",
    CELL_TYPE: f"{CELL_TYPE!r}, which is always matched, only once and first. Leave it out",
}
"""Axes that cannot be further keys, and what is expected in their place."""


def match_names(match: Any, fallback: Any) -> tuple[str, ...] | None:
    """Return the option `match` with ``"cell_type"`` as its first key; None stays None.

    Parameters
    ----------
    match, fallback
        See `lazypert.design.controls.ControlMappingConfig`.

    Raises
    ------
    ConfigError
        If `match` is not a list of names, one is given twice, ``"cell_type"`` is not the first, or it is None with
        ``fallback="error"``; or there is no such fallback.
    """
    require_choice("fallback", fallback, Fallback)
    if match is None:
        if fallback == "error":
            raise ConfigError(
                "fallback: got 'error' without match, expected the keys that controls must share. Pass both."
            )
        return None
    names = require_names("match", match)
    names = names if names[:1] == [CELL_TYPE] else [CELL_TYPE, *names]
    for name in ("perturbation", "dataset"):
        require(name not in names, "match", match, UNUSABLE[name])
    require(CELL_TYPE not in names[1:], "match", match, UNUSABLE[CELL_TYPE])
    require(all(names) and len(set(names)) == len(names), "match", match, "each key once, and no empty name")
    return tuple(names)
