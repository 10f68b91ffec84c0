"""AnnData's Zarr stores: ``.zarr`` folders and ``.zarr.zip`` files, of Zarr format 2 and 3.

A store of lazypert is one, so that it can be converted again, into another order or together with others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazypert_converters._anndata import open_anndata
from lazypert_converters._zarr import ZarrTree, is_zarr

if TYPE_CHECKING:
    from pathlib import Path

    from lazypert_converters._anndata import AnnDataReader

_LEAVES_NOTHING_OUT = "lazypert"
"""Root attribute of stores whose writer writes every chunk, so that one that is not there is lost."""


class AnnDataZarrConverter:
    """Opens AnnData's Zarr stores."""

    name = "anndata_zarr"

    def recognises(self, path: Path) -> bool:
        """Whether the folder or zip file is a Zarr group; what is not AnnData in it is ours to explain."""
        return is_zarr(path)

    def open(self, path: Path) -> AnnDataReader:
        """Open a store and read its structure, no values."""
        tree = ZarrTree(path, "AnnData Zarr store")
        with tree.root() as root:
            if _LEAVES_NOTHING_OUT in root.attributes():
                root.check_whole()
        return open_anndata(tree)
