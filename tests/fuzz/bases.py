"""Small valid files of every source format, and how another library reads a mutant of each."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import scanpy
from scipy import sparse

from lazypert.store.store import Store
from tests.support import h5changes
from tests.support.h5files import PERTURBATION_ROLES, array, dense_x, replace, text, write_base
from tests.support.mtx import assert_same_as_scanpy, folder
from tests.support.oracles import assert_equal, read_with_anndata
from tests.support.stores import counts, screen, source_row, write
from tests.support.zarr_stores import write_zarr

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import anndata


@dataclass(frozen=True)
class Base:
    """A valid file.

    Attributes
    ----------
    name
        Name of the file.
    write
        Writes it.
    roles
        Options of its conversion.
    """

    name: str
    write: Callable[[Path], Any]
    roles: dict[str, Any]

    def assert_converted(self, store: Path, source: Path) -> None:
        """Assert that a store holds what another library reads in the source."""
        if self.name.endswith(".h5") or "." not in self.name:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read = scanpy.read_10x_h5 if self.name.endswith(".h5") else scanpy.read_10x_mtx
                adata = read(source)
            lines = Store(store).attrs["warnings"]
            lost = [name for name in adata.var if any(f"features/{name} was not copied: " in line for line in lines)]
            adata.var = adata.var.drop(columns=lost)
            assert_same_as_scanpy(store, adata, dtype="f4")
        else:
            adata = _without_what_was_left_out(read_with_anndata(source), Store(store).attrs["warnings"])
            assert_equal(store, adata, rows=source_row(store) if self.roles else None)


def _without_what_was_left_out(adata: anndata.AnnData, lines: list[str]) -> anndata.AnnData:
    """Remove the columns and layers of which the store says that they were not copied."""

    def is_listed(where: str) -> bool:
        return any(f" {where} was not copied: " in line for line in lines)

    for table in ("obs", "var"):
        frame = getattr(adata, table)
        setattr(adata, table, frame[[name for name in frame if not is_listed(f"{table}/{name}")]])
    for name in [name for name in adata.layers if name is not None and is_listed(f"layers/{name}")]:
        del adata.layers[name]
    if adata.raw is not None and any(is_listed(f"raw/var/{name}") for name in adata.raw.var):
        raw = adata.raw.to_adata()
        raw.var = raw.var[[name for name in raw.var if not is_listed(f"raw/var/{name}")]]
        adata.raw = raw
    return adata


def _compressed(path: Path) -> None:
    write_base(path, h5changes.compressed(compression="gzip", shuffle=True))


def _checked(path: Path) -> None:
    write_base(path, h5changes.compressed(fletcher32=True), libver="latest")


def _csc(path: Path) -> None:
    def change(file: h5py.File) -> None:
        matrix = sparse.csc_matrix(counts(12, 7))
        for name in ("data", "indices", "indptr"):
            replace(file, f"X/{name}", getattr(matrix, name))
        file["X"].attrs["encoding-type"] = "csc_matrix"

    write_base(path, change)


def _dense(path: Path) -> None:
    write_base(path, lambda file: dense_x(file, counts(12, 7).toarray(), chunks=(5, 3), compression="gzip"))


def _linked(path: Path) -> None:
    """Write what damages links most: groups of many members, references, and links of each kind."""

    def change(file: h5py.File) -> None:
        uns = file.create_group("uns")
        for i in range(40):
            text(uns, f"entry{i}", [f"value{i}"])
        file["varm/loadings"] = np.ones((7, 2))
        file["uns/link"] = h5py.SoftLink("/obs/n")
        file["uns/other"] = file["obs/note"]

    write_base(path, change)


def _tenx(path: Path) -> None:
    matrix = counts(12, 7, dtype="i4")
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(matrix, name)
        group["shape"] = np.array([7, 12], "i4")
        group["barcodes"] = np.array([f"CELL-{i}" for i in range(12)], "S8")
        features = group.create_group("features")
        features["id"] = np.array([f"ENSG{j}" for j in range(7)], "S8")
        features["name"] = np.array([f"gene{j}" for j in range(7)], "S8")
        features["feature_type"] = np.array(["Gene Expression"] * 7, "S16")
        features["genome"] = np.array(["GRCh38"] * 7, "S8")


def _tenx_v2(path: Path) -> None:
    matrix = counts(12, 7, dtype="i4")
    with h5py.File(path, "w") as file:
        group = file.create_group("GRCh38")
        for name in ("data", "indices", "indptr"):
            array(group, name, getattr(matrix, name), chunks=(5,), compression="gzip")
        group["shape"] = np.array([7, 12], "i4")
        group["barcodes"] = np.array([f"CELL-{i}" for i in range(12)], "S8")
        group["genes"] = np.array([f"ENSG{j}" for j in range(7)], "S8")
        group["gene_names"] = np.array([f"gene{j}" for j in range(7)], "S8")


def _raw_and_more(path: Path) -> None:
    adata = screen(n_obs=20, n_vars=6)
    adata.raw = adata
    write(adata, path)


BASES = {
    "csr": Base("screen.h5ad", write_base, PERTURBATION_ROLES),
    "latest": Base("screen.h5ad", lambda path: write_base(path, libver="latest"), PERTURBATION_ROLES),
    "compressed": Base("screen.h5ad", _compressed, PERTURBATION_ROLES),
    "checked": Base("screen.h5ad", _checked, PERTURBATION_ROLES),
    "csc": Base("screen.h5ad", _csc, {}),
    "dense": Base("screen.h5ad", _dense, PERTURBATION_ROLES),
    "records": Base("screen.h5ad", lambda path: write_base(path, h5changes.as_records()), PERTURBATION_ROLES),
    "linked": Base("screen.h5ad", _linked, PERTURBATION_ROLES),
    "raw": Base("screen.h5ad", _raw_and_more, PERTURBATION_ROLES),
    "10x": Base("matrix.h5", _tenx, {}),
    "10x v2": Base("matrix.h5", _tenx_v2, {}),
    "zarr v3": Base("screen.zarr", lambda path: write_zarr(screen(20, 6), path), PERTURBATION_ROLES),
    "zarr v2": Base("screen.zarr", lambda path: write_zarr(screen(20, 6), path, version=2), PERTURBATION_ROLES),
    "zarr zip": Base("screen.zarr.zip", lambda path: write_zarr(screen(20, 6), path), PERTURBATION_ROLES),
    "mtx": Base("folder", lambda path: folder(path, counts(12, 7, dtype="i8"), gz=False, legacy=True), {}),
    "mtx.gz": Base("folder", lambda path: folder(path, counts(12, 7, dtype="i8")), {}),
}  # fmt: skip


def copy_base(source: Path, target: Path) -> None:
    """Copy a file or a folder."""
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)
