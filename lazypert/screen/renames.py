"""Spellings of one perturbation that are merged on request: names in place of labels, or labels without blanks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from lazypert._internal.validation import require
from lazypert.errors import LabelNotFoundError, near_matches

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from lazypert.screen.roles import Roles

Renames: TypeAlias = Mapping[str, str] | tuple[tuple[str, str], ...] | Literal["strip"]
"""Names in place of labels, or of parts of combinations; ``"strip"`` removes blanks around each."""

STRIP = "strip"

_EXPECTED = "a dictionary {label: name}, both text that is not empty, or 'strip'"


def check_renames(value: Any) -> tuple[tuple[str, str], ...] | Literal["strip"] | None:
    """Return the option `rename_perturbations` as sorted pairs.

    Raises
    ------
    ConfigError
        If it is neither a mapping of text to text that is not empty, nor pairs of them, nor ``"strip"``; or a label
        has two names.
    """
    if value is None:
        return None
    if isinstance(value, str):
        require(value == "strip", "rename_perturbations", value, _EXPECTED)
        return "strip"
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    is_list = isinstance(pairs, tuple | list) and all(
        isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs
    )
    is_text = is_list and all(isinstance(text, str) and text for pair in pairs for text in pair)
    require(is_text and len(pairs) > 0, "rename_perturbations", value, _EXPECTED)
    require(len({label for label, _ in pairs}) == len(pairs), "rename_perturbations", value, "one name for each label")
    return tuple(sorted((str(label), str(name)) for label, name in pairs))


def names_of(renames: Mapping[str, str] | tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Return names by label."""
    return dict(renames.items() if isinstance(renames, Mapping) else renames)


def rename_labels(
    codes: NDArray[np.int32], labels: NDArray[np.str_], roles: Roles
) -> tuple[NDArray[np.int32], NDArray[np.str_]]:
    """Merge the labels of perturbations as the roles say; without a request, they stay as they are.

    Parameters
    ----------
    codes, labels
        (n_obs,) codes and sorted labels, as in the obs column.

    Raises
    ------
    LabelNotFoundError
        If a label to rename occurs neither as a label nor as a part of one.
    """
    from lazypert.screen.labels import rename  # needs pandas, which reading an experiment file does not load

    renames = roles.rename_perturbations
    if renames is None:
        return codes, labels
    texts: list[str] = labels.tolist()
    if isinstance(renames, str):
        return rename(codes, [_of_parts(label, roles.separator, str.strip) for label in texts])
    names = names_of(renames)
    _require_known(names, texts, roles)
    in_any_order = {_sorted_parts(label, roles.separator): name for label, name in names.items()}

    def new_name(label: str) -> str:
        """The whole label counts before its parts, and B+A is A+B."""
        whole = names.get(label) or in_any_order.get(_sorted_parts(label, roles.separator))
        return whole or _of_parts(label, roles.separator, lambda part: names.get(part, part))

    return rename(codes, list(map(new_name, texts)))


def _sorted_parts(label: str, separator: str | None) -> tuple[str, ...]:
    """Parts of a label, which are the same in any order; without a separator, it is its own only part."""
    return (label,) if separator is None else tuple(sorted(label.split(separator)))


def _of_parts(label: str, separator: str | None, name: Callable[[str], str]) -> str:
    """Name of a label from the names of its parts; without a separator, it is its own only part."""
    parts = [label] if separator is None else label.split(separator)
    return (separator or "").join(map(name, parts))


def _require_known(names: Mapping[str, str], labels: Sequence[str], roles: Roles) -> None:
    parts = [part for label in labels for part in label.split(roles.separator)] if roles.separator else []
    known = {*labels, *parts}
    combined = {_sorted_parts(label, roles.separator) for label in labels}
    for label in names:
        if label not in known and _sorted_parts(label, roles.separator) not in combined:
            raise LabelNotFoundError(
                f"rename_perturbations: got {label!r}, expected a label in obs column {roles.pert_col!r}. "
                f"{near_matches(label, labels)}"
            )
