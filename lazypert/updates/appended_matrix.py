"""Appending the rows of new cells to the matrices of a store."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert.conversion.matrices import index_dtype
from lazypert.sparse.csr import canonical
from lazypert.sparse.value_stats import ValueStats, value_stats
from lazypert.store.format import (
    COLUMN_SHARD,
    Grid,
    declared_dtype,
    index_codec,
    stored_index_dtype,
    values_codec,
)
from lazypert.updates.appended_array import ArrayAppender, finite_sum, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lazypert.sparse.csr import CSRBlock
    from lazypert.store.matrix import Matrix
    from lazypert.updates.appended_columns import Splice

_BLOCK_VALUES = 4_194_304
"""Values of the new cells that are held at once."""


def new_rows(matrix: Matrix, new_col: NDArray[np.int32] | None, n_cols: int) -> Iterator[tuple[int, CSRBlock]]:
    """Yield blocks of the new cells with their first row; columns are renumbered if they differ from the store's."""
    n_rows = matrix.shape[0]
    per_row = matrix.stats["nnz"] // max(1, n_rows) + 1
    step = max(1, min(COLUMN_SHARD, _BLOCK_VALUES // per_row))
    for start in range(0, n_rows, step):
        block = matrix.read(start, min(n_rows, start + step))
        yield start, block if new_col is None else canonical(block.select_cols(new_col, n_cols))


def append_matrix(
    splice: Splice, name: str, blocks: Iterator[tuple[int, CSRBlock]]
) -> tuple[dict[str, Any], list[str]]:
    """Append rows to a matrix.

    Returns
    -------
    The new summary of the matrix, and its arrays that had to be written again because a wider dtype is needed.
    """
    old, new = (store.attrs["matrices"][name] for store in (splice.old, splice.new))
    has_same_columns = True
    appenders: dict[str, ArrayAppender] = {}
    stats, nnz, totals = ValueStats(), old["nnz"], list[float | None]()
    minimum, maximum = min(old["minimum"], new["minimum"]), max(old["maximum"], new["maximum"])
    rewritten = _widen(splice, name, old["nnz"] + new["nnz"], (minimum, maximum))
    for array in ("indptr", "indices", "data"):
        n_added = splice.new.n_obs if array == "indptr" else new["nnz"]
        appenders[array] = splice.appender(f"{name}/{array}", n_added, of_matrix=array != "indptr")
    for _, block in blocks:
        stats = stats.merge(value_stats(block.data))
        with np.errstate(invalid="ignore", over="ignore"):  # infinities
            total = float(block.data.sum(dtype=np.float64))
        totals.append(total if np.isfinite(total) else None)
        appenders["indptr"].add(_cast(nnz + block.indptr[1:], appenders["indptr"]))
        appenders["indices"].add(_cast(block.indices, appenders["indices"]))
        appenders["data"].add(_cast(block.data, appenders["data"]))
        nnz += block.nnz
        has_same_columns &= block.n_cols == old["n_cols"]
    assert has_same_columns, name
    for appender in appenders.values():
        appender.close()
    file = splice.writer.root / name / "zarr.json"
    metadata = json.loads(file.read_bytes())
    metadata["attributes"]["shape"] = [splice.old.n_obs + splice.new.n_obs, old["n_cols"]]
    write_json(file, metadata)
    summary = {
        "n_cols": old["n_cols"],
        "nnz": nnz,
        "sum": finite_sum([old["sum"], *totals]),
        "integral": old["integral"] and stats.integral,
        "minimum": min(old["minimum"], stats.minimum),
        "maximum": max(old["maximum"], stats.maximum),
        "n_nonfinite": old["n_nonfinite"] + stats.n_nonfinite,
    }
    return summary, rewritten


def _cast(values: NDArray[Any], appender: ArrayAppender) -> NDArray[Any]:
    return values.astype(appender.dtype, copy=False)


def _widen(splice: Splice, name: str, nnz: int, bounds: tuple[float, float]) -> list[str]:
    """Write arrays of the old cells again whose dtype does not hold what is appended; return their paths."""
    old, new = splice.old, splice.new
    minimum, maximum = bounds
    stored = old.open_array(f"{name}/data").dtype
    needed = new.open_array(f"{name}/data").dtype
    is_empty = old.attrs["matrices"][name]["nnz"] == 0
    dtype = needed if is_empty else stored if np.can_cast(needed, stored) else np.result_type(stored, needed)
    rewritten = []
    declared = declared_dtype(dtype, maximum, minimum)
    if dtype != stored or declared != old._root[f"{name}/data"].dtype:
        _rewrite(splice, f"{name}/data", dtype, declared, of_values=True)
        rewritten.append(f"{name}/data")
    bound = index_dtype(nnz)
    if bound.itemsize > old.open_array(f"{name}/indptr").dtype.itemsize:
        n_cols = old.attrs["matrices"][name]["n_cols"]
        _rewrite(splice, f"{name}/indices", stored_index_dtype(n_cols, bound), bound, of_values=False)
        _rewrite(splice, f"{name}/indptr", bound, None, of_values=None)
        rewritten += [f"{name}/indices", f"{name}/indptr"]
    return rewritten


def _rewrite(
    splice: Splice, path: str, dtype: np.dtype[Any], declared: np.dtype[Any] | None, *, of_values: bool | None
) -> None:
    """Write the values of the old cells with another dtype, on the same grid."""
    array = splice.old.open_array(path)
    splice.remove(path)
    grid: Grid = array.grid
    options: dict[str, Any] = {}
    if of_values is not None:
        options = {
            "codec": values_codec(dtype) if of_values else index_codec(dtype, splice.old.compression),
            "declared": declared,
        }
    template = splice.writer.template(path, dtype, grid, **options)
    for shard in range(grid.n_shards):
        splice.writer.add([template.write_shard(shard, array.read(*grid.span(shard)).astype(dtype))])
