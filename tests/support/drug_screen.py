"""A small drug screen with dose and time, and its conditions from the labels alone."""

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

import lazypert as lp
from lazypert import PerturbationPipeline, PerturbationPipelineConfig

DOSES, TIMES, VEHICLE = (0.5, 1.0, 10.0), (6, 24), "DMSO"

ROLES = {"pert_col": "drug", "control_pert": VEHICLE, "cell_type_col": "cell_type", "batch_col": "plate"}
COVARIATES = ("dose", "time")


def drug_screen(n=600, seed=0, *, prefix="cell", missing=0.05):
    """Cells with drug, dose, time, cell type and plate: vehicle cells have no dose, and some labels are missing."""
    rng = np.random.default_rng(seed)

    def pick(*names):
        drawn = np.array(names, dtype=object)[rng.integers(0, len(names), n)]
        drawn[rng.random(n) < missing] = None
        return drawn

    drug = pick(VEHICLE, "A", "B", "C")
    drug[0] = VEHICLE
    obs = pd.DataFrame(
        {
            "drug": pd.Categorical(drug),
            "dose": np.where((drug == VEHICLE) | (rng.random(n) < missing), np.nan, rng.choice(DOSES, n)),
            "time": rng.choice(TIMES, n),
            "cell_type": pd.Categorical(pick("T", "U")),
            "plate": pd.Categorical(pick("p1", "p2")),
        },
        index=[f"{prefix}{i}" for i in range(n)],
    )
    counts = sparse.csr_matrix(rng.poisson(1.5, (n, 6)).astype("f4"))
    return anndata.AnnData(counts, obs, pd.DataFrame(index=[f"g{j}" for j in range(6)]))


def label(value):
    """Text of a label; empty if it is missing."""
    if pd.isna(value):
        return ""
    return str(int(value)) if isinstance(value, float) and value == int(value) else str(value)


def labels_of(obs, columns=("cell_type", "drug", *COVARIATES)):
    """One tuple of texts per cell."""
    return list(zip(*(obs[column].astype(object).map(label) for column in columns), strict=True))


def groups_of(obs, columns=("cell_type", "drug", *COVARIATES)):
    """Names of the cells of each group, by its labels; cells without a cell type or a drug are in none."""
    found = {}
    for name, labels in zip(obs.index, labels_of(obs, columns), strict=True):
        if labels[0] and labels[1]:
            found.setdefault(labels, set()).add(name)
    return found


def convert(adata, path, covariates=COVARIATES, **options):
    file = path.with_suffix(".h5ad")
    adata.write_h5ad(file)
    return lp.convert(file, path, **(ROLES | {"covariates": covariates, "progress": False} | options))


def pipeline(screen, **options):
    return PerturbationPipeline(PerturbationPipelineConfig(**(ROLES | options))).setup(screen)


def named_groups(groups, names):
    """Names of the cells of each group, by its labels."""
    found = {}
    for run in np.flatnonzero(groups.ids >= 0):
        labels = tuple(str(groups.labels[axis][groups.codes[axis][run]]) for axis in ("cell_type", "perturbation"))
        labels += tuple(str(texts[groups.condition[run]]) for texts in groups.conditions.labels.values())
        found.setdefault(labels, set()).update(names[groups.rows(np.array([run]))[:]])
    return found


def members(rows, names):
    return set(np.asarray(names)[np.asarray(rows)])
