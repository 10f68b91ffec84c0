"""The rivals: each converts one ``.h5ad`` into one folder, called as its documentation says.

Imports stand inside the functions: what a rival needs is imported by the worker before the measuring
starts (`Rival.modules`), and the others' packages never are.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GROUPS = ["cell_type", "perturbation", "batch"]
CONTROL = "non-targeting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """One way to convert a screen.

    Parameters
    ----------
    convert
        ``convert(source, target, memory_limit)``; only lazypert can heed the limit.
    modules
        What to import before the measuring starts.
    about
        What it does, for the report.
    """

    convert: Callable[[Path, Path, str], None]
    modules: tuple[str, ...]
    about: str

    def missing(self) -> str | None:
        """Why this rival cannot run here, if so."""
        packages = dict.fromkeys(module.split(".")[0] for module in self.modules)
        absent = [name for name in packages if importlib.util.find_spec(name) is None]
        return f"{', '.join(absent)} is not installed" if absent else None

    def load(self) -> None:
        """Import what it needs."""
        for module in self.modules:
            importlib.import_module(module)


def _lazypert(source: Path, target: Path, memory_limit: str) -> None:
    import lazypert as lp

    lp.convert(
        source,
        target,
        pert_col="perturbation",
        control_pert=CONTROL,
        cell_type_col="cell_type",
        batch_col="batch",
        memory_limit=memory_limit,
    )


def _annbatch_shuffled(source: Path, target: Path, _: str) -> None:
    from annbatch import DatasetCollection

    DatasetCollection(target).add_adatas([source])


def _annbatch_grouped(source: Path, target: Path, _: str) -> None:
    from annbatch import DatasetCollection

    DatasetCollection(target).add_adatas([source], groupby=GROUPS)


def _anndata(source: Path, target: Path, _: str) -> None:
    import anndata
    import numpy as np

    adata = anndata.read_h5ad(source)
    within = np.random.default_rng(0).random(adata.n_obs)
    order = np.lexsort([within, *(adata.obs[column].cat.codes for column in reversed(GROUPS))])
    adata = adata[order].copy()
    with anndata.settings.override(zarr_write_format=3):
        adata.write_zarr(target)


RIVALS = {
    "lazypert": Rival(
        convert=_lazypert,
        modules=("lazypert", "lazypert.conversion.convert", "lazypert_converters.h5ad", "anndata"),
        about="grouped by cell type, perturbation and batch, shuffled within; bounded memory",
    ),
    "annbatch-shuffled": Rival(
        convert=_annbatch_shuffled,
        modules=("annbatch",),
        about="annbatch's collection with its defaults: shuffled",
    ),
    "annbatch-grouped": Rival(
        convert=_annbatch_grouped,
        modules=("annbatch",),
        about="annbatch's collection, grouped by the same three columns",
    ),
    "anndata": Rival(
        convert=_anndata,
        modules=("anndata", "zarr", "scipy.sparse"),
        about="read whole, sorted into the same order, written with its defaults in Zarr format 3",
    ),
}


def contents(store: Path) -> dict[str, Any]:
    """Read cells, nonzeros and the sum of all values of a store, whether one AnnData or a collection."""
    import numpy as np
    import zarr

    root = zarr.open_group(store, mode="r")
    parts = [root] if "X" in root else [part for name, part in root.groups() if name.startswith("dataset_")]
    cells, nnz, total = 0, 0, 0.0
    for part in parts:
        data = part["X/data"]
        cells += int(part["X"].attrs["shape"][0])
        nnz += data.shape[0]
        step = data.chunks[0] * max(1, 2**23 // data.chunks[0])
        total += sum(float(np.sum(data[at : at + step], dtype=np.float64)) for at in range(0, data.shape[0], step))
    return {"cells": cells, "nnz": nnz, "sum": total}
