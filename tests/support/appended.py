"""Two screens of which the second is appended to a store of the first."""

import anndata
import numpy as np
import pandas as pd

from tests.support.stores import screen, write


def files_of(folder, **options):
    """Two screens with partly the same labels, and a store of the first and of both."""
    first, second = screen(90, seed=0, **options), screen(70, seed=1, **options)
    labels = np.where(np.arange(70) % 7 == 0, "gene3", second.obs["perturbation"].astype(str))
    second.obs["perturbation"] = pd.Categorical(labels)
    second.obs["batch"] = pd.Categorical(np.where(second.obs["batch"] == "b1", "a0", second.obs["batch"].astype(str)))
    for name, adata in (("one", first), ("two", second)):
        write(adata, folder / f"{name}.h5ad")
    return folder / "one.h5ad", folder / "two.h5ad"


RICH = {"covariates": ["dose"], "separator": "+", "compression": "compact"}


def enrich(path, seed):
    """Give a screen combinations, doses, raw, and a table of cells in obsm."""
    adata, rng = anndata.read_h5ad(path), np.random.default_rng(seed)
    labels = adata.obs["perturbation"].astype(str).to_numpy()
    labels[::5] = "KRAS+TP53" if seed else "BRCA1+TP53"
    adata.obs["perturbation"] = pd.Categorical(labels)
    adata.obs["dose"] = pd.Categorical(rng.choice(["1 nM", "5 nM"] if seed else ["0.1 nM", "1 nM"], adata.n_obs))
    adata.raw = adata[:, ::-1].copy()
    table = {"x": rng.random(adata.n_obs), "who": pd.Categorical(rng.choice(["p", f"q{seed}"], adata.n_obs))}
    adata.obsm["table"] = pd.DataFrame(table, index=adata.obs_names)
    write(adata, path)
