"""Small screens, and cells with known labels to compare results with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

import lazypert as lp
from lazypert.screen.cell_order import name_hashes
from lazypert.screen.conditions import Conditions
from lazypert.screen.groups import Groups
from lazypert.screen.labels import factorise
from lazypert.screen.roles import AXES, Roles
from tests.support.data import require_data

CONTROL = "non-targeting"
MISSING = None


def real_screen(name):
    """Path of a published screen; skips the test if it is not there."""
    return require_data("screens", name)


def make_screen(obs, counts=None, *, genes=None, var=None, layers=None, obsm=None):
    """A tiny AnnData with these obs columns, a dict of lists in which None is a missing label."""
    frame = pd.DataFrame({name: pd.Categorical(column) for name, column in obs.items()})
    frame.index = [f"cell{i}" for i in range(len(frame))]
    if counts is None:
        counts = np.random.default_rng(0).poisson(2.0, (len(frame), 5 if genes is None else len(genes)))
    counts = np.asarray(counts, dtype="f4")
    genes = [f"g{i}" for i in range(counts.shape[1])] if genes is None else genes
    return anndata.AnnData(
        sparse.csr_matrix(counts),
        obs=frame,
        var=pd.DataFrame(var or {}, index=pd.Index(genes)),
        layers={name: sparse.csr_matrix(np.asarray(layer, dtype="f4")) for name, layer in (layers or {}).items()},
        obsm=obsm,
    )


def holey_screen(n=40, seed=0, *, genes=None, missing=0.1):
    """A screen with missing labels, an embedding, a layer, and further obs columns."""
    rng = np.random.default_rng(seed)

    def pick(*names):
        drawn = np.array(names, dtype=object)[rng.integers(0, len(names), n)]
        drawn[rng.random(n) < missing] = None
        return drawn.tolist()

    obs = {
        "perturbation": [CONTROL, *pick("A", "B", CONTROL)[1:]],
        "cell_type": pick("T", "U"),
        "batch": pick("b2", "b1", "b3"),
    }
    genes = genes or [f"g{i}" for i in range(6)]
    counts = rng.poisson(1.0, (n, len(genes)))
    adata = make_screen(
        obs,
        counts,
        genes=genes,
        var={"hvg": np.arange(len(genes)) % 2 == 1},
        layers={"twice": counts * 2},
        obsm={"X_pca": rng.normal(size=(n, 3)).astype("f4")},
    )
    adata.obs["depth"] = rng.random(n)
    adata.obs["donor"] = pd.Categorical(pick("x", "y"))
    return adata


def write_screen(adata, path):
    """Write an .h5ad file, creating its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    adata.write_h5ad(path)
    return path


def source_of(adata, folder, *, name="screen", order=None, **config):
    """A source of a screen: from the cache or, with `order`, from a store in that order."""
    path = write_screen(adata, Path(folder) / f"{name}.h5ad")
    config = {"pert_col": "perturbation", "cell_type_col": "cell_type", "batch_col": "batch"} | config
    if order is not None:
        roles = {key: config[key] for key in ("pert_col", "cell_type_col", "batch_col")}
        path = lp.convert(path, path.with_suffix(".zarr"), **roles, order=order)
    return lp.PerturbationAnnDataSource(lp.PerturbationSourceConfig(file_path=path, **config))


def in_store_order(source, adata):
    """The AnnData with its cells in the order of the source's rows, matched by cell name."""
    return adata[list(source.obs_names(np.arange(source.n_rows)))]


def concatenated(screens, sources, genes):
    """Dense values in store order, zero where a screen lacks the gene; and obs."""
    ordered = [in_store_order(source, s) for source, s in zip(sources, screens, strict=True)]
    dense = [a.to_df().reindex(columns=genes, fill_value=0).to_numpy() for a in ordered]
    return np.concatenate(dense), pd.concat([a.obs for a in ordered])


@dataclass(eq=False)
class Cells:
    """A source as splitters and mappings see it, and the labels of every row to compare with."""

    groups: Groups
    frame: pd.DataFrame
    names: np.ndarray | None = None

    def labels(self, axis, rows):
        return self.frame[axis].to_numpy(dtype=object)[np.asarray(rows)]

    def obs_names(self, rows):
        return self.names[np.asarray(rows)]

    def read_obs(self, column, rows):
        return self.frame[column].to_numpy()[np.asarray(rows)]


def make_cells(control=CONTROL, names=None, obs=None, roles=None, **columns):
    """Cells with the labels of each axis: ``cell_type=[...], perturbation=[...]``; None is a missing label.

    `obs` has further columns, among them the covariates of the roles.
    """
    n = len(next(iter(columns.values())))
    codes, labels = {}, {}
    for axis in AXES:
        found = factorise(np.array(columns[axis], dtype=object)) if axis in columns else (None, [])
        codes[axis], labels[axis] = found
    axes = {"pert_col": "perturbation", "cell_type_col": "cell_type", "batch_col": "batch"}
    roles = Roles(**axes, control_pert=control) if roles is None else roles
    names = np.array([f"cell{i}" for i in range(n)] if names is None else names, dtype=object)
    covariates = {name: factorise(np.array(obs[name], dtype=object)) for name in roles.covariates}
    conditions = Conditions.encode(covariates) if covariates else None
    groups = Groups.from_codes(
        codes, labels, roles, name_hashes(names), conditions=conditions, read_names=names.__getitem__
    )
    frame = pd.DataFrame({axis: columns.get(axis, ["all"] * n) for axis in AXES}, dtype=object)
    return Cells(groups, frame.assign(**(obs or {})), names)


def random_cells(n, seed, *, n_perts=4, n_types=2, n_batches=3, n_datasets=1, missing=0.0, control=CONTROL):
    """Cells with random labels; the control is one of the perturbations."""
    rng = np.random.default_rng(seed)

    def pick(names):
        drawn = np.array(names, dtype=object)[rng.integers(0, len(names), n)]
        drawn[rng.random(n) < missing] = None
        return drawn

    return make_cells(
        control=control,
        perturbation=pick([control, *(f"P{i}" for i in range(n_perts - 1))]),
        cell_type=pick([f"T{i}" for i in range(n_types)]),
        batch=pick([f"b{i}" for i in range(n_batches)]),
        dataset=np.array([f"d{i}" for i in range(n_datasets)], dtype=object)[rng.integers(0, n_datasets, n)],
    )


def design_cells():
    """3 cell types x 6 perturbations (one of them the control) x 50 cells, in 2 batches."""
    types, perts, cells = (axis.ravel() for axis in np.indices((3, 6, 50)))
    order = np.random.default_rng(0).permutation(cells.size)
    return make_cells(
        cell_type=np.array(["Astrocyte", "Microglia", "Neuron"], dtype=object)[types[order]],
        perturbation=np.array(["BRCA1", "EGFR", "KRAS", "MYC", "TP53", CONTROL], dtype=object)[perts[order]],
        batch=np.array(["batch1", "batch2"], dtype=object)[order % 2],
    )


def control_pool(cells, row, strategy, allowed=None):
    """Controls that a row may be matched with, from the labels alone."""
    frame = cells.frame
    matches = (frame["perturbation"] == CONTROL) & (frame["dataset"] == frame["dataset"][row])
    matches &= frame["cell_type"] == frame["cell_type"][row]
    if allowed is not None:
        matches &= np.isin(np.arange(len(frame)), allowed)
    batch = frame["batch"].fillna("missing")
    in_batch = matches & (batch == batch[row])
    return set(np.flatnonzero(in_batch if strategy == "batch" and in_batch.any() else matches))
