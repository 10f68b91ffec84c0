"""Formats that lazypert recognises but does not read: each raises an error that explains what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import h5py

from lazypert.converter import raise_machine_error
from lazypert.errors import SourceFormatError
from lazypert_converters._hdf5 import is_hdf5, open_hdf5

if TYPE_CHECKING:
    from pathlib import Path

_MUDATA_SIGNATURE = b"MuData"  # precedes the HDF5 signature


class UnsupportedConverter:
    """Recognises MuData's ``.h5mu``, ``.loom`` and Cell Ranger's ``molecule_info.h5``, but opens none of them."""

    name = "foreign"  # converters are asked in alphabetical order, and h5ad would take some MuData files

    def recognises(self, path: Path) -> bool:
        """Whether the content of the file is in one of these formats."""
        return _advice(path) is not None

    def open(self, path: Path) -> NoReturn:
        """Raise a `SourceFormatError` that says what the file is and how to get a screen from it."""
        raise SourceFormatError(f"{str(path)!r} is {_advice(path) or 'of an unknown format'}. Nothing was written.")


def _advice(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        is_mudata = file.read(len(_MUDATA_SIGNATURE)) == _MUDATA_SIGNATURE
    if not is_mudata and not is_hdf5(path):
        return None
    try:
        with open_hdf5(path) as file:
            return _advice_on(path, file, is_mudata)
    except (OSError, RuntimeError) as error:  # damaged
        raise_machine_error(path, error)
        return _mudata_advice(path, []) if is_mudata else None


def _advice_on(path: Path, file: h5py.File, is_mudata: bool) -> str | None:
    modalities = file.get("mod")
    if is_mudata or (isinstance(modalities, h5py.Group) and "obs" in file and "var" in file):
        return _mudata_advice(path, list(modalities) if isinstance(modalities, h5py.Group) else [])
    if isinstance(file.get("matrix"), h5py.Dataset) and "row_attrs" in file and "col_attrs" in file:
        return (
            "a Loom file with a dense matrix of genes x cells, expected cells x genes. Write it as H5AD once and "
            f"convert that: anndata.io.read_loom({path.name!r}).write_h5ad('{path.stem}.h5ad') (requires the package "
            "loompy)"
        )
    if {"umi", "gem_group"} <= set(file):
        return (
            "Cell Ranger's molecule_info, a list of molecules, expected a matrix of cells. "
            "Convert filtered_feature_bc_matrix.h5 from the same folder"
        )
    return None


def _mudata_advice(path: Path, modalities: list[str]) -> str:
    listed = ", ".join(map(repr, modalities)) or "not readable"
    likely = [name for name in modalities if name.lower() in ("rna", "gex")] or modalities or ["rna"]
    return (
        f"a MuData file (modalities: {listed}), expected one matrix of cells. Write one modality and convert that: "
        f"mudata.read_h5mu({path.name!r})[{likely[0]!r}].write_h5ad('{likely[0]}.h5ad')"
    )
