"""Controls that a boolean obs column marks, as labels of perturbations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert.errors import ConfigError
from lazypert.screen.labels import factorise

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TRUE, _FALSE = frozenset({"true", "1"}), frozenset({"false", "0"})


def marks_of(column: str, values: Any) -> NDArray[np.bool_]:
    """(n_obs,) bool: which cells a column marks. Its values are booleans, 0 and 1, or the texts True and False.

    Raises
    ------
    ConfigError
        If values are missing, or are something else.
    """
    codes, labels = factorise(values)
    return marks_of_labels(column, labels, int((codes < 0).sum()))[codes]


def marks_of_labels(column: str, labels: NDArray[np.str_], n_missing: int) -> NDArray[np.bool_]:
    """(n_labels,) bool: which labels of a column mark cells; see `marks_of`.

    Parameters
    ----------
    n_missing
        Cells without a label.
    """
    other = [str(label) for label in labels if label.lower() not in _TRUE | _FALSE]
    if other or n_missing:
        got = f"values such as {other[0]!r}" if other else f"{n_missing:,} missing values"
        raise ConfigError(
            f"control_col: got obs column {column!r} with {got}, expected True and False for every cell. Name another "
            "column, or pass the labels of controls as control_pert."
        )
    return np.array([label.lower() in _TRUE for label in labels], dtype=bool)


def marked_labels(
    column: str, codes: NDArray[np.integer], labels: NDArray[np.str_], is_marked: NDArray[np.bool_]
) -> tuple[str, ...]:
    """Return the labels of the cells that are marked as controls.

    Parameters
    ----------
    column
        Name of the column that marks them, for messages.
    codes, labels
        (n_obs,) codes and (n_labels,) labels of perturbations.
    is_marked
        (n_obs,) bool: which cells are marked.

    Raises
    ------
    ConfigError
        If no cell is marked, a marked cell has no label, or cells with the same label differ.
    """
    codes, is_marked = np.where(codes < 0, len(labels), codes), np.asarray(is_marked)
    n_cells = np.bincount(codes, minlength=len(labels) + 1)
    return controls_by_count(column, labels, n_cells, np.bincount(codes[is_marked], minlength=len(labels) + 1))


def controls_by_count(
    column: str, labels: NDArray[np.str_], n_cells: NDArray[np.integer], n_marked: NDArray[np.integer]
) -> tuple[str, ...]:
    """Return the labels of the cells that are marked as controls; see `marked_labels`.

    Parameters
    ----------
    n_cells, n_marked
        (n_labels + 1,) cells of each label, and of those the marked ones; the last element counts cells without a
        label.
    """
    n_unlabelled, n_cells, n_marked = int(n_marked[-1]), n_cells[:-1], n_marked[:-1]
    mixed = np.flatnonzero((n_marked > 0) & (n_marked < n_cells))
    if len(mixed):
        name, marked, total = str(labels[mixed[0]]), n_marked[mixed[0]], n_cells[mixed[0]]
        raise ConfigError(
            f"control_col: got obs column {column!r}, which marks {marked:,} of {total:,} cells of {name!r} as "
            "controls; expected all cells of a label or none. Give the controls a label of their own."
        )
    if n_unlabelled or not n_marked.any():
        got = f"marks {n_unlabelled:,} cells without a perturbation label" if n_unlabelled else "marks no cell"
        raise ConfigError(
            f"control_col: got obs column {column!r}, which {got}; expected labels of controls. Give these cells a "
            "label in pert_col."
        )
    return tuple(str(labels[code]) for code in np.flatnonzero(n_marked))
