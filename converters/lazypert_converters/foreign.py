"""Formats that are known but not read: each is answered with what to do instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import h5py

from lazypert.errors import SourceFormatError
from lazypert_converters._hdf5 import is_hdf5

if TYPE_CHECKING:
    from pathlib import Path

_MUDATA = b"MuData"  # stands before the HDF5 signature


class ForeignConverter:
    """Recognises MuData's ``.h5mu``, ``.loom`` and Cell Ranger's ``molecule_info.h5``, and opens none."""

    name = "foreign"

    def recognises(self, path: Path) -> bool:
        """Whether the file is one of those, by its content."""
        return _advice(path) is not None

    def open(self, path: Path) -> NoReturn:
        """Raise `SourceFormatError` that says what the file is and how to get a screen from it."""
        raise SourceFormatError(f"{str(path)!r} is {_advice(path) or 'of no format known here'}. Nothing was written.")


def _advice(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        is_mudata = file.read(len(_MUDATA)) == _MUDATA
    if not is_mudata and not is_hdf5(path):
        return None
    try:
        with h5py.File(path, "r") as file:
            return _advice_on(path, file, is_mudata)
    except (OSError, RuntimeError):  # damaged
        return _mudata(path, []) if is_mudata else None


def _advice_on(path: Path, file: h5py.File, is_mudata: bool) -> str | None:
    modalities = file.get("mod")
    if is_mudata or (isinstance(modalities, h5py.Group) and "obs" in file and "var" in file):
        return _mudata(path, list(modalities) if isinstance(modalities, h5py.Group) else [])
    if isinstance(file.get("matrix"), h5py.Dataset) and "row_attrs" in file and "col_attrs" in file:
        return (
            "a Loom file, which keeps a dense matrix of genes x cells. Write it as H5AD once and convert that: "
            f"anndata.io.read_loom({path.name!r}).write_h5ad('{path.stem}.h5ad') (needs the package loompy)"
        )
    if {"umi", "gem_group"} <= set(file):
        return (
            "Cell Ranger's molecule_info, a list of molecules and not a matrix of cells. "
            "Convert filtered_feature_bc_matrix.h5, which lies beside it"
        )
    return None


def _mudata(path: Path, modalities: list[str]) -> str:
    known = ", ".join(map(repr, modalities)) or "not readable"
    likely = [name for name in modalities if name.lower() in ("rna", "gex")] or modalities or ["rna"]
    return (
        f"a MuData file (modalities: {known}), expected one matrix of cells. Write one modality and convert that: "
        f"mudata.read_h5mu({path.name!r})[{likely[0]!r}].write_h5ad('{likely[0]}.h5ad')"
    )
