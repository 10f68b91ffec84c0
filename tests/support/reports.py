"""Splits made by hand, and the screens of their reports."""

from itertools import combinations

import anndata
import numpy as np
from scipy import sparse

import lazypert as lp
from lazypert._internal.inverse_permutation import inverse
from lazypert.screen.rows import Rows
from lazypert.splits.names import SPLITS
from tests.support.screens import CONTROL, make_screen, write_screen

PAIRS = tuple(combinations(SPLITS, 2))


class Named:
    """Names by row."""

    def __init__(self, names):
        self.names = np.asarray(names, dtype=object)
        self.n_rows = len(self.names)
        self.n_read = 0

    def obs_names(self, rows):
        self.n_read += len(rows)
        return self.names[rows]


def parts_of(groups, split_of_row):
    """Rows of each split, from the (n_rows,) split of each row, or -1."""
    order = groups.row_order
    position_of = np.arange(len(split_of_row)) if order is None else inverse(order)
    found = [np.sort(position_of[np.asarray(split_of_row) == number]) for number in range(len(SPLITS))]
    return [Rows(positions, positions + 1, order) for positions in found]


def split_by_hand(groups, split_of_row):
    return lp.SplitResult(*parts_of(groups, split_of_row), groups)


def findings(report, kind=None, level=None):
    """Findings of a report as ``{(kind, level, splits): n_cells}``."""
    return {
        (row.kind, row.level, row.splits): row.n_cells
        for row in report.leaks.itertuples()
        if kind in (None, row.kind) and level in (None, row.level)
    }


def gene_rich_screen(n=60, seed=0, *, n_genes=60, names=None):
    """A screen whose cells have enough genes to be recognised by them."""
    rng = np.random.default_rng(seed)
    obs = {
        "perturbation": [CONTROL, "A", "B"] * (n // 3),
        "cell_type": ["T", "U"] * (n // 2),
        "batch": (["b1"] * (n // 2)) + ["b2"] * (n // 2),
    }
    adata = make_screen(obs, rng.poisson(3.0, (n, n_genes)))
    adata.obs_names = [f"{seed}-cell{i}" for i in range(n)] if names is None else names
    return adata


def with_counts(adata, counts, *, genes=None, names=None):
    """The same obs with other counts, gene names or cell names."""
    var = adata.var.iloc[:0].reindex(adata.var_names if genes is None else genes)
    out = anndata.AnnData(sparse.csr_matrix(counts), obs=adata.obs.copy(), var=var)
    out.obs_names = list(adata.obs_names) if names is None else names
    return out


def screens(folder, join="inner", **adatas):
    """A source of several screens, each written to a file of its own."""
    roles = {"pert_col": "perturbation", "cell_type_col": "cell_type", "batch_col": "batch", "control_pert": CONTROL}
    paths = [write_screen(adata, folder / f"{name}.h5ad") for name, adata in adatas.items()]
    configs = [lp.PerturbationSourceConfig(file_path=path, **roles) for path in paths]
    return lp.PerturbationConcatSource([lp.PerturbationAnnDataSource(config) for config in configs], join=join)
