"""Converter for AnnData's ``.h5ad`` files, of every version since 0.5, and for AnnData objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lazypert.converter import raise_machine_error
from lazypert_converters._anndata import open_anndata
from lazypert_converters._hdf5 import Hdf5Tree, is_hdf5, open_hdf5
from lazypert_converters.anndata_object import is_anndata, open_anndata_object

if TYPE_CHECKING:
    from pathlib import Path

    from lazypert_converters._anndata import AnnDataReader

_ANNDATA_NAMES = {"obs", "var", "X"}
_OTHER_NAMES = {"mod", "matrix"}  # MuData files have obs and var too; 10x and Loom files have a matrix


class H5adConverter:
    """Opens ``.h5ad`` files, and AnnData objects in memory."""

    name = "h5ad"

    def recognises(self, path: Path) -> bool:
        """Whether the file is HDF5 and either holds an element of AnnData or is named ``.h5ad``."""
        if not is_hdf5(path):
            return False
        try:
            with open_hdf5(path) as file:
                names = set(file)
        except (OSError, RuntimeError) as error:  # damaged HDF5: `open` explains it
            raise_machine_error(path, error)
            return True
        return not names & _OTHER_NAMES and (bool(names & _ANNDATA_NAMES) or path.suffix.lower() == ".h5ad")

    def open(self, path: Path) -> AnnDataReader:
        """Open a file and check its structure, without reading values."""
        return open_anndata(Hdf5Tree(path, "AnnData file"))

    def recognises_object(self, value: object) -> bool:
        """Whether an object is an AnnData."""
        return is_anndata(value)

    def open_object(self, value: Any) -> AnnDataReader:
        """Open an AnnData object and check its structure, without reading matrices."""
        return open_anndata_object(value)
