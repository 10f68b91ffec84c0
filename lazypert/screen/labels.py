"""Label columns as integer codes and sorted labels, one vocabulary for several files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lazypert.errors import SourceFormatError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


_MOST_LABEL_CHARACTERS = 1 << 24  # NumPy gives every label the length of the longest: 64 MiB


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
    names = categorical.categories.astype(str)
    longest = max((len(name) for name in names), default=0)
    if longest * len(names) > _MOST_LABEL_CHARACTERS:
        raise SourceFormatError(
            f"A column has {len(names):,} labels of up to {longest:,} characters, expected short names of "
            "perturbations, cell types or batches. Name another column, or shorten its values."
        )
    text = np.asarray(names, dtype=np.str_)
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


def join_columns(parts: Sequence[Any], lengths: Sequence[int]) -> Any:
    """Put a column of several files one after another, without changing what a value says.

    Parameters
    ----------
    parts
        For each file the column's values, or None where it has no such column.
    lengths
        Cells of each file.

    Returns
    -------
    (sum of lengths,) values; cells of a file without the column are missing there, not zero.
    Categoricals stay categorical, numbers stay numbers, and other mixtures become text.
    """
    columns = [None if part is None else pd.Series(part) for part in parts]
    given = [column for column in columns if column is not None]
    kinds = {_kind(column.dtype) for column in given}
    if kinds == {"category"}:
        return _join_categoricals(columns, lengths)
    if len(given) == len(columns) and kinds <= {"i", "u", "f"}:
        return np.concatenate([column.to_numpy() for column in given])  # pandas 2 would not count empty ones
    if len(given) == len(columns) and len({c.dtype for c in given}) == 1:
        return pd.concat(given, ignore_index=True).array
    if kinds <= {"i", "u", "Int"}:
        return _concat(columns, lengths, "Int64")
    if kinds <= {"b", "boolean"}:
        return _concat(columns, lengths, "boolean")
    if kinds <= {"i", "u", "f", "Int"}:
        filled = [np.full(n, np.nan) if c is None else _floats(c) for c, n in zip(columns, lengths, strict=True)]
        return np.concatenate(filled)
    text = [
        np.full(n, None, dtype=object) if c is None else c.astype(object).where(c.notna(), None).to_numpy()
        for c, n in zip(columns, lengths, strict=True)
    ]
    return np.array([None if value is None else str(value) for value in np.concatenate(text)], dtype=object)


def _kind(dtype: Any) -> str:
    if isinstance(dtype, pd.CategoricalDtype):
        return "category"
    if isinstance(dtype, np.dtype):
        return str(dtype.kind)
    return {"i": "Int", "u": "Int", "b": "boolean"}.get(dtype.kind, "text")


def _concat(columns: Sequence[Any], lengths: Sequence[int], dtype: str) -> Any:
    filled = [
        pd.Series(pd.array([None] * n, dtype=dtype)) if c is None else c.astype(dtype)
        for c, n in zip(columns, lengths, strict=True)
    ]
    return pd.concat(filled, ignore_index=True).array


def _floats(column: Any) -> NDArray[Any]:
    return column.to_numpy(dtype=None if _kind(column.dtype) == "f" else np.float64, na_value=np.nan)


def _join_categoricals(columns: Sequence[Any], lengths: Sequence[int]) -> pd.Categorical:
    given = [column for column in columns if column is not None]
    if len({column.cat.categories.dtype for column in given}) > 1:  # 1 in one file, "1" in another
        columns = [None if c is None else _with_text_labels(c) for c in columns]
        given = [column for column in columns if column is not None]
    # Of unordered categoricals pandas calls two dtypes equal whose categories stand in another order.
    first = given[0].dtype
    if not all(c.cat.categories.equals(first.categories) and c.cat.ordered == first.ordered for c in given):
        first = pd.CategoricalDtype(pd.api.types.union_categoricals(given, ignore_order=True).categories)
    codes = [
        np.full(n, -1)
        if c is None
        else np.append(first.categories.get_indexer(c.cat.categories), -1)[c.cat.codes.to_numpy()]
        for c, n in zip(columns, lengths, strict=True)
    ]
    return pd.Categorical.from_codes(np.concatenate(codes), dtype=first)


def _with_text_labels(column: Any) -> Any:
    labels, number = np.unique(np.asarray(column.cat.categories.astype(str), dtype=np.str_), return_inverse=True)
    codes = np.append(number, -1)[column.cat.codes.to_numpy()]  # -1, a missing label, picks the last
    return pd.Series(pd.Categorical.from_codes(codes, pd.Index(labels.astype(object), dtype=object)))
