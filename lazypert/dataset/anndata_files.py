"""A Dataset as an AnnData in memory, and as an .h5ad file that is written block by block."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from lazypert._internal.files import sync
from lazypert._internal.paths import local_path
from lazypert.dataset.anndata_elements import stored_elements
from lazypert.dataset.anndata_parts import MatrixPart, matrix_parts, obs_table, raw_table, var_table
from lazypert.errors import ConfigError, StoreExistsError
from lazypert.store.format import RAW

if TYPE_CHECKING:
    from pathlib import Path

    import h5py
    import pandas as pd
    import xarray as xr
    from anndata import AnnData
    from numpy.typing import DTypeLike

    from lazypert.store.store import Store

_CHUNK = 65536  # elements per chunk of sparse data in a file
_SPARSE = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0"}
_DENSE = {"encoding-type": "array", "encoding-version": "0.2.0"}
_RAW = {"encoding-type": "raw", "encoding-version": "0.1.0"}
_ROOT = {"encoding-type": "anndata", "encoding-version": "0.1.0"}


def to_anndata(ds: xr.Dataset, store: Store, dtype: DTypeLike | None) -> AnnData:
    """Read a Dataset into memory as an AnnData; see `PertAccessor.to_anndata`."""
    from anndata import AnnData

    elements: dict[str, dict[str, Any]] = {"X": {}, "layers": {}, "obsm": {}, "raw": {}}
    for part in matrix_parts(ds, store, dtype):
        kind, _, name = part.element.partition("/")
        blocks = list(part.blocks())
        elements[kind][name] = sparse.vstack(blocks, format="csr") if part.is_sparse else np.concatenate(blocks)
    adata = _tables(ds, store)
    adata.X = elements["X"].get("")
    adata.layers.update(elements["layers"])
    adata.obsm.update(elements["obsm"])
    for values in elements["raw"].values():
        adata.raw = AnnData(values, obs=adata.obs, var=raw_table(ds, store))
    return adata


def write_h5ad(
    ds: xr.Dataset, store: Store, path: str | Path, *, dtype: DTypeLike | None, compression: str | None, overwrite: bool
) -> Path:
    """Write a Dataset as an .h5ad file; see `PertAccessor.write_h5ad`."""
    import h5py

    target = local_path("path", path, "Write a local file, and copy it.")
    if not target.absolute().parent.is_dir():
        raise ConfigError(f"path: got {str(path)!r}, expected a file in an existing local folder.")
    if target.exists() and not overwrite:
        raise StoreExistsError(f"{str(path)!r} exists already. Pass overwrite=True to replace it.")
    parts = matrix_parts(ds, store, dtype)
    temporary = target.with_name(f"{target.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        with h5py.File(temporary, "x") as file:
            file.attrs.update(_ROOT)
            _write_tables(file, _tables(ds, store))
            if any(part.element == RAW for part in parts):
                _write_raw_table(file, raw_table(ds, store))
            for part in parts:
                (_write_sparse if part.is_sparse else _write_dense)(file, part, compression)
        sync(temporary)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return target


def _tables(ds: xr.Dataset, store: Store) -> AnnData:
    """Make an AnnData that has obs, var, uns, varm, varp and the tables in obsm."""
    from anndata import AnnData

    return AnnData(obs=obs_table(ds, store), var=var_table(ds, store), **stored_elements(ds, store))


def _write_tables(file: h5py.File, adata: AnnData) -> None:
    import anndata

    adata.strings_to_categoricals()  # as anndata does when it writes a file
    with anndata.settings.override(allow_write_nullable_strings=True):
        for name, table in (("obs", adata.obs), ("var", adata.var)):
            anndata.io.write_elem(file, name, table)
        for name in ("obsm", "varm", "varp", "uns"):
            anndata.io.write_elem(file, name, dict(getattr(adata, name)))
        for name in ("layers", "obsp"):
            anndata.io.write_elem(file, name, {})


def _write_raw_table(file: h5py.File, var: pd.DataFrame) -> None:
    import anndata

    group = file.create_group("raw")
    group.attrs.update(_RAW)
    anndata.io.write_elem(group, "var", var)
    anndata.io.write_elem(group, "varm", {})


def _write_sparse(file: h5py.File, part: MatrixPart, compression: str | None) -> None:
    n_cells, n_columns = part.shape
    group = file.create_group(part.element)
    group.attrs.update({**_SPARSE, "shape": np.array(part.shape, np.int64)})
    # SciPy wants indices and bounds of one dtype, which cannot change once blocks are written.
    index_dtype = np.int32 if n_cells * n_columns < 2**31 else np.int64
    dtypes = {"data": part.dtype, "indices": index_dtype}
    options: dict[str, Any] = {"shape": (0,), "maxshape": (None,), "chunks": (_CHUNK,), "compression": compression}
    arrays = {name: group.create_dataset(name, dtype=dtype, **options) for name, dtype in dtypes.items()}
    indptr, n_rows, nnz = np.zeros(n_cells + 1, index_dtype), 0, 0
    for block in part.blocks():
        for name, array in arrays.items():
            array.resize((nnz + block.nnz,))
            array[nnz:] = getattr(block, name)
        indptr[n_rows + 1 : n_rows + 1 + block.shape[0]] = block.indptr[1:].astype(index_dtype) + nnz
        n_rows, nnz = n_rows + block.shape[0], nnz + block.nnz
    group.create_dataset("indptr", data=indptr, compression=compression)


def _write_dense(file: h5py.File, part: MatrixPart, compression: str | None) -> None:
    array = file.create_dataset(part.element, shape=part.shape, dtype=part.dtype, compression=compression)
    array.attrs.update(_DENSE)
    start = 0
    for block in part.blocks():
        array[start : start + len(block)] = block
        start += len(block)
