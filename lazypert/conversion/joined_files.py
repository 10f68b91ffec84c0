"""Per-cell values of several files, read as if they were one file."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lazypert.screen.labels import join_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from lazypert.converter import ScreenReader


def _concatenate(arrays: Sequence[Any]) -> Any:
    if len(arrays) == 1:
        return arrays[0]
    if all(isinstance(array, np.ndarray) for array in arrays):
        return np.concatenate(arrays)
    return pd.concat([pd.Series(array) for array in arrays], ignore_index=True).array


def obs_column_reader(readers: Sequence[ScreenReader], name: str | None) -> Callable[[int, int], Any]:
    """Return a function that reads an obs column of several files as if they were one.

    Parameters
    ----------
    name
        The column; None reads the cell names.

    Returns
    -------
    A function of (start, stop). Values are missing where a file lacks the column, and all slices
    have one dtype.
    """
    bounds = np.cumsum([0, *(reader.n_obs for reader in readers)]).tolist()
    empty: list[Any] = []
    dtype: Any = None
    if name is not None and len(readers) > 1:
        heads = [r.obs_column(name, 0, min(1, r.n_obs)) if name in r.obs_columns else None for r in readers]
        empty = [None if head is None else head[:0] for head in heads]
        dtype = join_columns(heads, [min(1, r.n_obs) for r in readers]).dtype

    def read_file(number: int, start: int, stop: int) -> Any:
        reader = readers[number]
        if name is None:
            return reader.obs_names(start, stop)
        if len(readers) == 1:
            return reader.obs_column(name, start, stop)
        columns, lengths = list(empty), [0] * len(readers)
        lengths[number] = stop - start
        if columns[number] is not None:
            columns[number] = reader.obs_column(name, start, stop)
        values = join_columns(columns, lengths)
        return values if values.dtype == dtype else values.astype(dtype)

    def read(start: int, stop: int) -> Any:
        arrays = [
            read_file(number, max(start - first, 0), min(stop, last) - first)
            for number, (first, last) in enumerate(pairwise(bounds))
            if max(start, first) < min(stop, last) or (start == stop == first)
        ]
        return _concatenate(arrays)

    return read


def embedding_reader(
    readers: Sequence[ScreenReader], name: str, dtype: np.dtype[Any]
) -> Callable[[int, int], NDArray[Any]]:
    """Return a function of (start, stop) that reads an embedding of several files as if they were one."""
    bounds = np.cumsum([0, *(reader.n_obs for reader in readers)]).tolist()

    def read(start: int, stop: int) -> NDArray[Any]:
        arrays = [
            reader.read_obsm(name, max(start - first, 0), min(stop, last) - first)
            for reader, (first, last) in zip(readers, pairwise(bounds), strict=True)
            if max(start, first) <= min(stop, last)
        ]
        return np.concatenate(arrays).astype(dtype, copy=False)

    return read
