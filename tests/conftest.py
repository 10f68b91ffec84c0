from __future__ import annotations

from types import SimpleNamespace

import anndata
import pytest

import lazypert as lp
from lazypert.simulate import reference_screen

ROLES = {
    "pert_col": "perturbation",
    "control_pert": "non-targeting",
    "cell_type_col": "cell_type",
    "batch_col": "batch",
}


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """The reference screen: the file, what AnnData reads in it, its store, and a source. Don't write to them."""
    folder = tmp_path_factory.mktemp("reference")
    path = reference_screen(folder / "screen.h5ad", seed=1)
    store = lp.convert(path, folder / "screen.zarr", **ROLES)
    source = lp.PerturbationAnnDataSource(lp.PerturbationSourceConfig(file_path=store, hvg_col="highly_variable"))
    return SimpleNamespace(path=path, adata=anndata.read_h5ad(path), store=store, source=source)
