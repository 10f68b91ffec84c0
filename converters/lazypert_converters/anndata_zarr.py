"""Converter for AnnData's Zarr stores: ``.zarr`` folders and ``.zarr.zip`` files, Zarr formats 2 and 3.

lazypert's own stores are AnnData stores too, so they can be converted again, in another row order or
together with other files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazypert_converters._anndata import open_anndata
from lazypert_converters._zarr import ZarrTree, check_source, is_zarr

if TYPE_CHECKING:
    from pathlib import Path

    from lazypert_converters._anndata import AnnDataReader

_WRITES_EVERY_CHUNK = "lazypert"
"""Root attribute of stores whose writer writes every chunk, so an absent chunk is a lost one."""


class AnnDataZarrConverter:
    """Opens AnnData's Zarr stores."""

    name = "anndata_zarr"

    def recognises(self, path: Path) -> bool:
        """Whether a folder or zip file is a Zarr group; `open` explains those that are not AnnData."""
        return is_zarr(path)

    def open(self, path: Path) -> AnnDataReader:
        """Open a store and check its structure, without reading values."""
        check_source(path)
        tree = ZarrTree(path, "AnnData Zarr store")
        with tree.root() as root:
            if _WRITES_EVERY_CHUNK in root.attributes():
                root.check_complete()
        return open_anndata(tree)
