"""AnnData's ``.h5ad`` files, of every version since 0.5."""

from __future__ import annotations

from typing import TYPE_CHECKING

import h5py

from lazypert_converters._anndata import open_anndata
from lazypert_converters._hdf5 import Hdf5Tree, is_hdf5

if TYPE_CHECKING:
    from pathlib import Path

    from lazypert_converters._anndata import AnnDataReader

_PARTS = {"obs", "var", "X"}
_OTHERS = {"mod", "matrix"}  # MuData has obs and var as well; 10x and Loom files have a matrix


class H5adConverter:
    """Opens ``.h5ad`` files."""

    name = "h5ad"

    def recognises(self, path: Path) -> bool:
        """Whether the file is HDF5 with a part of AnnData in it, or called so."""
        if not is_hdf5(path):
            return False
        try:
            with h5py.File(path, "r") as file:
                found = set(file)
        except (OSError, RuntimeError):  # HDF5 that cannot be opened is ours to explain
            return True
        return not found & _OTHERS and (bool(found & _PARTS) or path.suffix.lower() == ".h5ad")

    def open(self, path: Path) -> AnnDataReader:
        """Open a file and read its structure, no values."""
        return open_anndata(Hdf5Tree(path, "AnnData file"))
