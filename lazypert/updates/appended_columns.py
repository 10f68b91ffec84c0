"""Appending the obs columns of new cells, and tables like obs, to those of a store."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lazypert.conversion.dataframe_writer import write_column
from lazypert.screen.labels import join_columns
from lazypert.store.format import COLUMN_SHARD, Grid
from lazypert.updates.appended_array import ArrayAppender, write_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from lazypert.conversion.array_writer import ArrayWriter
    from lazypert.store.store import Store


@dataclass(frozen=True)
class Splice:
    """The two stores whose rows follow one another, and what writes the new version of the first.

    Attributes
    ----------
    old, new
        The store, and a store of the new cells only.
    writer
        Writes into the new version, which begins with the files of `old`.
    read
        Reads a file of values of the new version.
    """

    old: Store
    new: Store
    writer: ArrayWriter
    read: Callable[[Path], bytes]

    def appender(self, path: str, n_added: int, *, of_matrix: bool = False) -> ArrayAppender:
        """Return what appends to an array of the new version."""
        grid = (Grid.matrix if of_matrix else Grid.column)(n_added)
        return ArrayAppender(self.writer.root / path, (grid.chunk, grid.shard), self.read)

    def append_array(self, path: str, change: Callable[[Any], Any] = lambda values: values) -> None:
        """Append the values of an array of the new cells, in slices, each changed by a function."""
        source = self.new.open_array(path)
        target = self.appender(path, len(source))
        for start in range(0, len(source), COLUMN_SHARD):
            target.add(change(source.read(start, min(len(source), start + COLUMN_SHARD))))
        target.close()

    def append_text(self, path: str) -> None:
        """Append the values of a text array of the new cells."""
        source = self.new.open_strings(path)
        target = self.appender(path, len(source))
        for start in range(0, len(source), COLUMN_SHARD):
            target.add(source.read(start, min(len(source), start + COLUMN_SHARD)))
        target.close()

    def remove(self, path: str) -> None:
        """Delete an element of the new version; the old version keeps its own links."""
        shutil.rmtree(self.writer.root / path)


def append_frame(splice: Splice, frame: str, names: dict[str, str | None]) -> list[str]:
    """Append to every column of obs, or of a table in obsm.

    Parameters
    ----------
    names
        For each column of the result, its name in the store of new cells; None if they lack it.

    Returns
    -------
    Paths of the columns that had to be written again as a whole.
    """
    rewritten = []
    splice.append_text(f"{frame}/_index")
    file = splice.writer.root / frame / "zarr.json"
    metadata = json.loads(file.read_bytes())
    known = metadata["attributes"]["column-order"]
    for name, new_name in names.items():
        path = f"{frame}/{name}"
        if name in known and name == new_name and _append_column(splice, path):
            continue
        old = splice.old.read_column(path) if name in known else None
        new = None if new_name is None else splice.new.read_column(f"{frame}/{new_name}")
        joined = join_columns([old, new], [splice.old.n_obs, splice.new.n_obs])
        if name in known:
            splice.remove(path)
            rewritten.append(path)
        write_column(splice.writer, frame, name, joined)
    metadata["attributes"]["column-order"] = known + [name for name in names if name not in known]
    write_json(file, metadata)
    return rewritten


def write_datasets(splice: Splice, name: str, old: list[str], new: NDArray[Any], of_cell: NDArray[np.integer]) -> None:
    """Write the column that names each cell's dataset, which a store of one file lacks.

    Parameters
    ----------
    old
        The name that all cells of the store get.
    new, of_cell
        Names of the new datasets, and the number of each new cell's among them.
    """
    categories = list(dict.fromkeys([*old, *new]))
    codes = np.concatenate([np.zeros(splice.old.n_obs, np.int32), pd.Index(categories).get_indexer(new)[of_cell]])
    write_column(splice.writer, "obs", name, pd.Categorical.from_codes(codes, categories))
    file = splice.writer.root / "obs" / "zarr.json"
    metadata = json.loads(file.read_bytes())
    metadata["attributes"]["column-order"] = [name, *metadata["attributes"]["column-order"]]
    write_json(file, metadata)


def append_datasets(splice: Splice, name: str, new: NDArray[Any], of_cell: NDArray[np.integer]) -> list[str]:
    """Append to the column that names each cell's dataset; return its path if it had to be written again."""
    path = f"obs/{name}"
    known = splice.old.read_categories(path)
    categories = list(dict.fromkeys([*known, *new]))
    codes = pd.Index(categories).get_indexer(new)[of_cell]
    target = splice.appender(f"{path}/codes", len(codes))
    if target.dtype is not None and len(categories) <= np.iinfo(target.dtype).max:
        target.add(codes)
        target.close()
        _append_categories(splice, path, categories[len(known) :])
        return []
    old = splice.old.read_array(f"{path}/codes")
    splice.remove(path)
    joined = pd.Categorical.from_codes(np.concatenate([old.astype(np.int32), codes]), categories)
    write_column(splice.writer, "obs", name, joined)
    return [path]


def _append_column(splice: Splice, path: str) -> bool:
    """Append to a column that both stores encode alike; return False if it has to be written again."""
    old, new = splice.old, splice.new
    encoding = old.encoding(path)
    if encoding != new.encoding(path):
        return False
    if encoding == "categorical":
        return _append_categorical(splice, path)
    if encoding == "string-array":
        splice.append_text(path)
    elif encoding == "nullable-string-array":
        if old.text_dtype(path) != new.text_dtype(path):
            return False
        splice.append_text(f"{path}/values")
        splice.append_array(f"{path}/mask")
    else:
        values = f"{path}/values" if encoding.startswith("nullable-") else path
        if old.open_array(values).dtype != new.open_array(values).dtype:
            return False
        splice.append_array(values)
        if values != path:
            splice.append_array(f"{path}/mask")
    return True


def _append_categorical(splice: Splice, path: str) -> bool:
    """Append codes, and the categories that are new; codes of the old cells stay as they are."""
    old, new = splice.old, splice.new
    known, found = pd.Index(old.read_categories(path)), pd.Index(new.read_categories(path))
    is_text = old.encoding(f"{path}/categories") == "string-array"
    if old.is_ordered(path) != new.is_ordered(path) or known.dtype != found.dtype:
        return False
    if is_text != (new.encoding(f"{path}/categories") == "string-array"):
        return False
    categories = known.append(found[~found.isin(known)])
    if old.is_ordered(path) and not (len(known) == len(found) and (known == found).all()):
        return False
    limit = np.iinfo(old.open_array(f"{path}/codes").dtype).max
    if len(categories) > limit:
        return False
    new_code = np.append(categories.get_indexer(found), -1)
    splice.append_array(f"{path}/codes", lambda codes: new_code[codes])
    _append_categories(splice, path, categories[len(known) :].to_numpy())
    return True


def _append_categories(splice: Splice, path: str, categories: Any) -> None:
    if len(categories):
        target = splice.appender(f"{path}/categories", len(categories))
        target.add(np.asarray(categories, dtype=object if target.dtype is None else target.dtype))
        target.close()
