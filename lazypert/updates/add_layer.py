"""Adding a layer to a finished store, block by block."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.validation import named_options
from lazypert.conversion.matrices import index_dtype, matrix_summary, matrix_templates
from lazypert.errors import ConfigError
from lazypert.sparse.csr import CSRBlock, canonical
from lazypert.sparse.value_stats import ValueStats, value_stats
from lazypert.store.format import COLUMN_SHARD, matrix_name
from lazypert.updates.checks import as_dense, numeric_dtype, require_element_name
from lazypert.updates.store_update import StoreUpdate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from lazypert.conversion.array_writer import ArrayWriter
    from lazypert.store.format import Compression
    from lazypert.store.store import Store

_BLOCK_BYTES = 32 * 1024**2
_BLOCK_ROWS = 4096
"""Rows that are read at once from an AnnData object, whose X may be in a file."""

_ORDER = "A layer needs the store's cells and genes in their order, which anndata.read_zarr(store) shows."


@named_options
def add_layer(
    store: str | Path,
    name: str,
    matrix: Any,
    *,
    storage_options: Mapping[str, Any] | None = None,
    work_dir: str | Path | None = None,
) -> None:
    """Add a layer to a store, in one step as `add_obs` does.

    Values are stored like those of X: rows sparse, in the smallest dtype that holds them all exactly, and with the
    store's compression. Beside one block, memory holds 16 bytes per cell; the values are collected in a temporary file
    beside the store, or in `work_dir` if it is at a URL.

    Parameters
    ----------
    store
        A store: a local folder or a URL.
    name
        Name of the new layer.
    matrix
        (n_obs, n_vars) SciPy sparse matrix, or array of NumPy or Dask, with cells and genes in the order of the store.
        Or an AnnData object with the same cells and genes in the same order, of which X is taken, also if it is backed
        by a file or lazy. Or an iterable of such matrices with some rows each, which follow one another.

    storage_options, work_dir
        As in `add_obs`.

    Raises
    ------
    ConfigError
        If the layer exists, or the matrix has another shape or order, is masked or malformed, or holds anything but
        numbers; otherwise as in `add_obs`.

    Examples
    --------
    >>> import lazypert as lp
    >>> lp.add_layer("screen.zarr", "lognorm", (normalise(block) for block in blocks))  # doctest: +SKIP
    """
    require_element_name("name", name)
    with StoreUpdate(store, storage_options, work_dir) as update:
        opened, path = update.store, f"layers/{name}"
        if path in opened.matrices or matrix_name(name, ()) != path:
            raise ConfigError(f"name: got {name!r}, which is a matrix of the store already. Choose another name.")
        blocks = _blocks(opened, matrix)
        writer = update.start()
        spool = _Spool(update.work, opened.n_vars)
        for block in blocks:
            spool.add(block)
            if spool.n_rows > opened.n_obs:
                raise ConfigError(f"matrix: got more than the store's {opened.n_obs:,} rows. {_ORDER}")
        if spool.n_rows < opened.n_obs:
            raise ConfigError(f"matrix: got {spool.n_rows:,} rows, expected {opened.n_obs:,}. {_ORDER}")
        summary = _write(writer, path, spool, opened.compression)
        update.publish([path], matrices={path: summary})


def _blocks(store: Store, matrix: Any) -> Iterator[Any]:
    """Yield blocks of rows; checks first what can be checked without reading values."""
    if hasattr(matrix, "obs_names") and hasattr(matrix, "var_names"):
        _check_same_names(store, matrix)
        x = matrix.X
        if x is None:
            raise ConfigError("matrix: got AnnData without X. Pass the matrix itself, such as adata.layers[name].")
        return (x[start : start + _BLOCK_ROWS] for start in range(0, store.n_obs, _BLOCK_ROWS))
    shape = getattr(matrix, "shape", None)
    if shape is None:
        try:
            return iter(matrix)
        except TypeError:
            raise ConfigError(
                f"matrix: got {type(matrix).__name__}, expected a SciPy matrix, an array, AnnData, or an iterable of "
                "blocks of rows."
            ) from None
    if tuple(shape) != (store.n_obs, store.n_vars):
        raise ConfigError(f"matrix: got shape {tuple(shape)}, expected {(store.n_obs, store.n_vars)}. {_ORDER}")
    if hasattr(matrix, "tocsr"):
        _check_indices("matrix", matrix)
        if getattr(matrix, "format", "") == "coo":  # which sums its repeats as soon as it is converted
            matrix = matrix.astype(_wide_dtype("matrix", matrix))
        matrix = matrix.tocsr()
        row_bytes = 12 * matrix.nnz // max(1, store.n_obs)
    else:
        row_bytes = 8 * store.n_vars
    step = max(1, _BLOCK_BYTES // max(1, row_bytes))
    return (matrix[start : start + step] for start in range(0, store.n_obs, step))


def _check_same_names(store: Store, adata: Any) -> None:
    names = store.open_strings("obs/_index")
    is_same = adata.shape == (store.n_obs, store.n_vars) and list(adata.var_names) == list(store.var.index)
    for start in range(0, store.n_obs if is_same else 0, COLUMN_SHARD):
        stop = min(store.n_obs, start + COLUMN_SHARD)
        is_same &= list(adata.obs_names[start:stop]) == list(names.read(start, stop))
    if not is_same:
        raise ConfigError(
            "matrix: got AnnData with other cells or genes than the store, or in another order. "
            f"{_ORDER} Reorder it, such as with adata[names_of_cells, names_of_genes]."
        )


class _Spool:
    """Values and column numbers of the rows so far, in temporary files.

    Attributes
    ----------
    ends
        int64 arrays, one per block: number of values up to the end of each row.
    stats, totals
        What the values require of their dtype, and their sum in each block.
    """

    def __init__(self, folder: Path, n_cols: int) -> None:
        self.n_cols, self.nnz, self.n_rows = n_cols, 0, 0
        self.ends: list[Any] = []
        self.stats, self.totals = ValueStats(), list[float]()
        self.dtype: np.dtype[Any] | None = None
        self.paths = folder / "data", folder / "indices"
        for path in self.paths:
            path.touch()

    def add(self, block: Any) -> None:
        """Append rows."""
        number = len(self.ends) + 1
        rows = _csr_rows(block, self.n_cols, number)
        dtype = rows.data.dtype
        self.dtype = self.dtype or dtype
        if dtype != self.dtype:
            raise ConfigError(
                f"matrix: got {dtype} in block {number} after blocks of {self.dtype}, expected one dtype. Convert them."
            )
        for path, values in zip(self.paths, (rows.data, rows.indices), strict=True):
            with path.open("ab") as file:
                values.tofile(file)
        self.ends.append(self.nnz + rows.indptr[1:])
        self.stats = self.stats.merge(value_stats(rows.data))
        with np.errstate(invalid="ignore", over="ignore"):  # infinities
            self.totals.append(float(rows.data.sum(dtype=np.float64)))
        self.nnz, self.n_rows = self.nnz + rows.nnz, self.n_rows + rows.shape[0]

    def read(self, number: int, start: int, stop: int) -> Any:
        """Read values (0) or column numbers (1) `start` to `stop`."""
        dtype = np.dtype(self.dtype or "u2") if number == 0 else np.dtype(np.int32)
        return np.fromfile(self.paths[number], dtype, stop - start, offset=start * dtype.itemsize)


def _csr_rows(block: Any, n_cols: int, number: int) -> CSRBlock:
    """Return a block in CSR form with sorted columns and without repeats; narrow integers become int64."""
    from scipy import sparse

    if hasattr(block, "dask"):
        block = block.compute()
    option, shape = f"matrix, block {number}", tuple(getattr(block, "shape", ()))
    if len(shape) != 2 or shape[1] != n_cols or not hasattr(block, "dtype"):
        found = f"{type(block).__name__}{f' of shape {shape}' if shape else ''}"
        raise ConfigError(f"{option}: got {found}, expected a SciPy matrix or an array of (rows, {n_cols:,}). {_ORDER}")
    dtype = _wide_dtype(option, block)
    if sparse.issparse(block):
        _check_indices(option, block)
    else:
        block = as_dense(option, block)
    rows = sparse.csr_matrix(block.astype(dtype, copy=False))
    return canonical(CSRBlock(rows.indptr.astype(np.int64), rows.indices.astype(np.int32), rows.data, n_cols))


def _wide_dtype(option: str, values: Any) -> np.dtype[Any]:
    """Return a dtype for sums of repeats: they may exceed what narrow integers hold."""
    dtype = numeric_dtype(option, values)
    return np.dtype(np.int64) if dtype.kind in "bui" and dtype.itemsize < 8 else dtype


def _check_indices(option: str, matrix: Any) -> None:
    """Raise `ConfigError` if a SciPy matrix points outside of itself, which SciPy does not check by itself."""
    if not hasattr(matrix, "check_format"):
        return
    try:
        matrix.check_format(full_check=True)
    except ValueError as error:
        raise ConfigError(
            f"{option}: got a malformed {matrix.format.upper()} matrix ({error}). Build it again."
        ) from error


def _write(writer: ArrayWriter, path: str, spool: _Spool, compression: Compression) -> dict[str, Any]:
    """Write a matrix from temporary files; return its summary."""
    shape = [spool.n_rows, spool.n_cols]
    writer.group(path, {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
    indptr = np.concatenate([np.zeros(1, np.int64), *spool.ends])
    writer.array(f"{path}/indptr", indptr.astype(index_dtype(spool.nnz)))
    templates = matrix_templates(writer, path, (spool.n_cols, spool.nnz), spool.stats, compression)
    for number, template in enumerate(templates):
        for shard in range(template.grid.n_shards):
            writer.add([template.write_shard(shard, spool.read(number, *template.grid.span(shard)))])
    return matrix_summary(spool.n_cols, spool.nnz, spool.stats, _sum(spool.totals))


def _sum(totals: Iterable[float]) -> float:
    try:
        return math.fsum(totals)
    except (OverflowError, ValueError):  # infinities of both signs, or too large
        return math.nan
