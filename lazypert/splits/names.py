"""Names of the splits, in lazypert's spelling and in cell-load's."""

from __future__ import annotations

from typing import Literal, get_args

from lazypert.errors import ConfigError, near_matches

Split = Literal["train", "valid", "test"]

SPLITS: tuple[Split, ...] = get_args(Split)


def split_name(name: str) -> Split:
    """Return a split's name as lazypert spells it: ``"val"``, cell-load's word, means ``"valid"``.

    Raises
    ------
    ConfigError
        If there is no such split.
    """
    wanted = "valid" if name == "val" else name
    for split in SPLITS:
        if split == wanted:
            return split
    raise ConfigError(
        f"split: got {name!r}, expected one of {', '.join(map(repr, SPLITS))}. {near_matches(str(name), SPLITS)}"
    )
