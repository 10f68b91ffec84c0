"""Small screens with what makes arranging cells hard: repeated names, missing labels, large groups, several files."""

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from tests.support.stores import every_column

GENES = ["A", "B", "C", "D", "NT"]


def odd_screen(n, seed, *, names="unique", labels="missing", columns="every"):
    """Return an AnnData of n cells.

    Parameters
    ----------
    names
        "unique", "few" (most cells share a name with others), "one", or "text" (not ASCII, some empty).
    labels
        "missing" (some), "one" (all cells in one group), or "numbers".
    columns
        "every" kind of column, or "few": besides those that a case names, a category, a number and text, with
        missing values.
    """
    rng = np.random.default_rng(seed)
    frame = every_column(n, seed)
    if columns == "few":
        frame = frame[["holey_category", "maybe_int", "maybe_text"]].copy()
    perturbation = rng.choice(["NT", "A", "B", "A+B", "B+A", "NT+C", " A"], n).astype(object)
    cell_type = rng.choice(["T1", "T2", "T 3"], n).astype(object)
    if labels == "missing":
        perturbation[rng.random(n) < 0.15] = None
        cell_type[rng.random(n) < 0.1] = None
    elif labels == "one":
        perturbation[:], cell_type[:] = "NT", "T1"
    frame["perturbation"], frame["cell_type"] = pd.Categorical(perturbation), pd.Categorical(cell_type)
    frame["batch"] = pd.Categorical(rng.choice(["b1", "b2", "b3"], n))
    frame["dose"] = rng.choice([0.1, 1.0, 10.0], n) if labels == "numbers" else rng.choice(["lo", "", "hi"], n)
    frame["is_control"] = frame["perturbation"].astype(object).eq("NT").to_numpy()
    frame.index = {
        "unique": [f"cell{seed}-{k}" for k in range(n)],
        "few": [f"cell{k % 7}" for k in range(n)],
        "one": ["cell"] * n,
        "text": [f"zelle-ü{k}-\N{GREEK SMALL LETTER ALPHA}" if k else "" for k in range(n)],
    }[names]
    counts = rng.poisson(0.6, (n, len(GENES))) * (rng.random((n, 1)) < 0.8)
    adata = anndata.AnnData(sparse.csr_matrix(counts.astype("f4")), obs=frame, var=pd.DataFrame(index=GENES))
    adata.obsm["X_pca"] = rng.normal(size=(n, 3)).astype("f4")
    adata.layers["twice"] = adata.X * 2
    return adata


ROLES = {"pert_col": "perturbation", "control_pert": "NT", "cell_type_col": "cell_type", "batch_col": "batch"}

CASES = {
    "grouped": ([{"columns": "every"}], {}),
    "source_order": ([{"columns": "every"}], {"order": "source"}),
    "repeated_names": ([{"names": "few"}], {}),
    "repeated_names_in_source_order": ([{"names": "few"}], {"order": "source"}),
    "one_name_one_group": ([{"names": "one", "labels": "one"}], {}),
    "one_name_one_group_in_source_order": ([{"names": "one", "labels": "one"}], {"order": "source"}),
    "one_group": ([{"labels": "one"}], {}),
    "other_alphabets": ([{"names": "text"}], {}),
    "no_roles": ([{"names": "few"}], dict.fromkeys(ROLES)),
    "no_batch": ([{}], {"batch_col": None}),
    "covariates": ([{"labels": "numbers"}], {"covariates": ("dose", "batch")}),
    "empty_labels": ([{}], {"covariates": ("dose",), "order": "source"}),
    "control_col": ([{}], {"control_pert": None, "control_col": "is_control"}),
    "separator": ([{}], {"separator": "+"}),
    "renames": ([{}], {"separator": "+", "rename_perturbations": "strip"}),
    "several_files": ([{"columns": "every"} | given for given in ({}, {"names": "few"}, {"n": 0}, {"n": 1})], {}),
    "several_files_in_source_order": ([{"names": "few"}, {"names": "few"}], {"order": "source", "separator": "+"}),
    "same_column_twice": ([{}], {"cell_type_col": "perturbation", "covariates": "perturbation"}),
}


def sources(case, n=37):
    """Return the AnnDatas of a case, with few columns unless it says every, and its options for `lazypert.convert`."""
    screens, options = CASES[case]
    made = [odd_screen(**({"n": n, "seed": seed, "columns": "few"} | given)) for seed, given in enumerate(screens)]
    return made, ROLES | options
