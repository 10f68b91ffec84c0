"""Zarr stores of AnnData, written as AnnData writes them."""

import shutil
import warnings

import anndata
import zarr
from anndata.io import write_elem


def write_zarr(adata, path, version=3):
    """Write an AnnData like AnnData itself, zipped if the name ends in .zip."""
    folder = path.with_suffix("") if path.suffix == ".zip" else path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with anndata.settings.override(allow_write_nullable_strings=True):
            write_elem(zarr.open_group(folder, mode="w", zarr_format=version), "/", adata)
    if path.suffix == ".zip":
        shutil.make_archive(str(folder), "zip", folder)
        shutil.rmtree(folder)
    return path
