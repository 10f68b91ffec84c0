"""Label columns as integer codes and sorted labels, one vocabulary for several files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def factorise(values: Any) -> tuple[NDArray[np.int32], NDArray[np.str_]]:
    """Turn a column into codes and labels.

    Parameters
    ----------
    values
        (n_obs,) labels: text, numbers, booleans or a Categorical, some perhaps missing.

    Returns
    -------
    codes
        (n_obs,) int32, -1 where the label is missing.
    labels
        (n_labels,) sorted text of the labels that occur.
    """
    categorical = values if isinstance(values, pd.Categorical) else pd.Categorical(values)
    text = np.asarray(categorical.categories.astype(str), dtype=np.str_)
    codes = np.asarray(categorical.codes)
    used = np.bincount(codes[codes >= 0], minlength=len(text)) > 0
    # Labels that print alike (1 and "1") become one; -1 is what code -1 picks.
    labels, number = np.unique(text[used], return_inverse=True)
    renumber = np.full(len(text) + 1, -1, dtype=np.int32)
    renumber[:-1][used] = number
    return renumber[codes], labels


def unite(parts: Sequence[tuple[NDArray[np.int32], NDArray[np.str_]]]) -> tuple[NDArray[np.int32], NDArray[np.str_]]:
    """Put columns of several files one after another under the union of their labels."""
    labels = np.unique(np.concatenate([names for _, names in parts]))
    codes = [np.append(np.searchsorted(labels, names), -1).astype(np.int32)[c] for c, names in parts]
    return np.concatenate(codes), labels
