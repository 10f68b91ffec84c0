"""Label columns as integer codes and sorted labels, and columns of several files joined into one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


_DOUBLE_DIGITS = 15  # of a decimal number in double precision; more of them are an artefact of single precision

_MAX_PADDED_CHARACTERS = 1 << 22  # 16 MiB: NumPy pads every label to the length of the longest


def label_text(value: Any) -> str:
    """Text of a label, which is the same for a number in any precision.

    Whole numbers are written as integers, so that 1 and 1.0 are one label, and so are 0.1 in single and in double
    precision.

    Examples
    --------
    >>> label_text(1.0), label_text(0.5), label_text(True), label_text("1.0")
    ('1', '0.5', 'True', '1.0')
    >>> label_text(np.float32(0.1)), float(np.float32(0.1))
    ('0.1', 0.10000000149011612)
    """
    if not isinstance(value, float | np.floating):
        return str(value)
    number = float(value)
    if number.is_integer():
        return str(int(number))
    text, single = str(number), np.float32(number)
    n_digits = len(text.partition("e")[0].replace(".", "").lstrip("-0"))
    return str(single) if n_digits > _DOUBLE_DIGITS and float(single) == number else text


def label_array(labels: Sequence[str]) -> NDArray[np.str_]:
    """(n,) labels: text of a fixed width, or objects where a few long labels would make that wasteful."""
    longest = max(map(len, labels), default=0)
    dtype = np.str_ if longest * len(labels) <= _MAX_PADDED_CHARACTERS else np.object_
    return np.asarray(labels, dtype=dtype)


def factorise(values: Any) -> tuple[NDArray[np.int32], NDArray[np.str_]]:
    """Encode a column as codes and labels.

    Parameters
    ----------
    values
        (n_obs,) labels: text, numbers, booleans or a Categorical; some may be missing.

    Returns
    -------
    codes
        (n_obs,) int32, -1 where the label is missing.
    labels
        (n_labels,) sorted text of the labels that occur.
    """
    categorical = values if isinstance(values, pd.Categorical) else pd.Categorical(values)
    names = categorical.categories
    text = _texts(names)
    codes = np.asarray(categorical.codes)
    occurs = np.bincount(codes[codes >= 0], minlength=len(text)) > 0
    # Labels with the same text (1 and "1") become one. Code -1 indexes the appended -1.
    labels, new_code = np.unique(text[occurs], return_inverse=True)
    new_codes = np.full(len(text) + 1, -1, dtype=np.int32)
    new_codes[:-1][occurs] = new_code
    return new_codes[codes], labels


def _texts(labels: pd.Index[Any]) -> NDArray[np.str_]:
    """(n,) text of each label."""
    if labels.dtype.kind not in "fO":
        return label_array(labels.astype(str).tolist())
    # As an array: pandas iterates over float32 as Python floats, and 0.1 would become 0.10000000149011612.
    return label_array(list(map(label_text, labels.to_numpy())))


def rename(codes: NDArray[np.integer], names: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.str_]]:
    """Give labels other names; those that get the same name become one.

    Parameters
    ----------
    codes
        (n_obs,) codes of labels, -1 for a missing label.
    names
        (n_labels,) new name of each label.
    """
    new_labels, new_code = np.unique(label_array(names), return_inverse=True)
    return np.append(new_code, -1).astype(np.int32)[codes], new_labels  # code -1 indexes the appended -1


def renumber(codes: NDArray[np.integer], old: NDArray[np.str_], new: NDArray[np.str_]) -> NDArray[np.int32]:
    """Codes for a larger sorted list of labels, `new`, from codes for `old`; -1 stays -1."""
    # Code -1 indexes the appended -1.
    return np.append(np.searchsorted(new, old), -1).astype(np.int32)[codes]


def unite(columns: Sequence[tuple[NDArray[np.int32], NDArray[np.str_]]]) -> tuple[NDArray[np.int32], NDArray[np.str_]]:
    """Concatenate the codes of several files under the union of their labels.

    Parameters
    ----------
    columns
        For each file, its codes and labels, as `factorise` returns them.
    """
    labels = np.unique(np.concatenate([file_labels for _, file_labels in columns]))
    return np.concatenate([renumber(codes, file_labels, labels) for codes, file_labels in columns]), labels


def join_columns(values: Sequence[Any], lengths: Sequence[int]) -> Any:
    """Concatenate a column of several files without changing the meaning of any value.

    Parameters
    ----------
    values
        For each file, the column's values, or None if it has no such column.
    lengths
        Number of cells in each file.

    Returns
    -------
    (sum of lengths,) values; cells of a file without the column get missing values, not zeros.
    Categoricals stay categorical, numbers stay numbers, and other mixtures become text, which is that of labels.
    """
    columns = [None if column is None else pd.Series(column) for column in values]
    given = [column for column in columns if column is not None]
    kinds = {_kind(column.dtype) for column in given}
    if kinds == {"category"}:
        return _join_categoricals(columns, lengths)
    if len(given) == len(columns) and kinds <= {"i", "u", "f"}:
        return np.concatenate([column.to_numpy() for column in given])  # pandas 2 ignores the dtype of empty columns
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
    return np.array([None if value is None else label_text(value) for value in np.concatenate(text)], dtype=object)


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
    if len({column.cat.categories.dtype for column in given}) > 1:  # such as 1 in one file, "1" in another
        columns = [None if c is None else _with_text_labels(c) for c in columns]
        given = [column for column in columns if column is not None]
    # pandas calls the dtypes of unordered categoricals equal even if the order of their categories differs.
    dtype = given[0].dtype
    if not all(c.cat.categories.equals(dtype.categories) and c.cat.ordered == dtype.ordered for c in given):
        dtype = pd.CategoricalDtype(pd.api.types.union_categoricals(given, ignore_order=True).categories)
    codes = [
        np.full(n, -1)
        if c is None
        else np.append(dtype.categories.get_indexer(c.cat.categories), -1)[c.cat.codes.to_numpy()]
        for c, n in zip(columns, lengths, strict=True)
    ]
    return pd.Categorical.from_codes(np.concatenate(codes), dtype=dtype)


def _with_text_labels(column: Any) -> Any:
    labels, new_code = np.unique(_texts(column.cat.categories), return_inverse=True)
    codes = np.append(new_code, -1)[column.cat.codes.to_numpy()]  # code -1 indexes the appended -1
    return pd.Series(pd.Categorical.from_codes(codes, pd.Index(labels.astype(object), dtype=object)))
