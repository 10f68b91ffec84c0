"""The rivals: each converts one ``.h5ad`` file into one folder, as its documentation recommends.

Imports are inside the functions: the worker imports what a rival needs before it starts measuring
(`Rival.modules`), and never imports the packages of other rivals.
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
        ``convert(source, target, memory_limit)``; only lazypert supports the limit.
    modules
        Modules to import before measuring starts.
    about
        Description for the report.
    """

    convert: Callable[[Path, Path, str], None]
    modules: tuple[str, ...]
    about: str

    def missing(self) -> str | None:
        """Why this rival cannot run here; None if it can."""
        packages = dict.fromkeys(module.split(".")[0] for module in self.modules)
        absent = [name for name in packages if importlib.util.find_spec(name) is None]
        return f"{', '.join(absent)} is not installed" if absent else None

    def load(self) -> None:
        """Import the modules."""
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
    random = np.random.default_rng(0).random(adata.n_obs)
    permutation = np.lexsort([random, *(adata.obs[column].cat.codes for column in reversed(GROUPS))])
    adata = adata[permutation].copy()
    with anndata.settings.override(zarr_write_format=3):
        adata.write_zarr(target)


RIVALS = {
    "lazypert": Rival(
        convert=_lazypert,
        modules=("lazypert", "lazypert.conversion.convert", "lazypert_converters.h5ad", "anndata"),
        about="grouped by cell type, perturbation and batch, shuffled within groups; bounded memory",
    ),
    "annbatch-shuffled": Rival(
        convert=_annbatch_shuffled,
        modules=("annbatch",),
        about="annbatch's collection with its defaults, shuffled",
    ),
    "annbatch-grouped": Rival(
        convert=_annbatch_grouped,
        modules=("annbatch",),
        about="annbatch's collection, grouped by the same three columns",
    ),
    "anndata": Rival(
        convert=_anndata,
        modules=("anndata", "zarr", "scipy.sparse"),
        about="read into memory, sorted into the same order, written with its defaults in Zarr format 3",
    ),
}


def contents(store: Path) -> dict[str, Any]:
    """Count the cells and nonzeros of a store, an AnnData or a collection, and sum its values."""
    import numpy as np
    import zarr

    root = zarr.open_group(store, mode="r")
    datasets = [root] if "X" in root else [group for name, group in root.groups() if name.startswith("dataset_")]
    cells, nnz, total = 0, 0, 0.0
    for dataset in datasets:
        data = dataset["X/data"]
        cells += int(dataset["X"].attrs["shape"][0])
        nnz += data.shape[0]
        step = data.chunks[0] * max(1, 2**23 // data.chunks[0])
        total += sum(float(np.sum(data[i : i + step], dtype=np.float64)) for i in range(0, data.shape[0], step))
    return {"cells": cells, "nnz": nnz, "sum": total}
