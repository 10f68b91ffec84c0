"""Screens with batch effects and no effect of any perturbation, and how far apart their cells and controls are."""

from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

import lazypert as lp
from tests.support.screens import CONTROL


def null_screen(path, *, n_batches, n_perturbations=20, n_cells=200, n_controls=2000, n_datasets=1, n_genes=40, seed=0):
    """Write a screen whose counts depend on the batch only; cells are sorted by perturbation and batch."""
    rng = np.random.default_rng(seed)
    sizes = np.broadcast_to(n_cells, n_perturbations).tolist()
    label = np.repeat(np.arange(n_perturbations + 1), [n_controls, *sizes])
    batch, dataset = rng.integers(0, n_batches, len(label)), rng.integers(0, n_datasets, len(label))
    order = np.lexsort((batch, label))
    label, batch, dataset = label[order], batch[order], dataset[order]
    effect = rng.normal(0, 0.6, (n_batches, n_genes))
    counts = rng.poisson(np.exp(1.5 + rng.normal(0, 0.5, n_genes) + effect[batch])).astype(np.float32)
    names = np.array([CONTROL, *(f"P{i}" for i in range(n_perturbations))])
    obs = pd.DataFrame(
        {"perturbation": names[label], "batch": np.char.mod("b%d", batch), "cell_type": "T"},
        index=[f"cell{i}" for i in range(len(label))],
    ).astype("category")
    var = pd.DataFrame(index=[f"g{i}" for i in range(n_genes)])
    paths = []
    for number in range(n_datasets):
        chosen = dataset == number
        name = path if n_datasets == 1 else path.with_stem(f"{path.stem}{number}")
        anndata.AnnData(sparse.csr_matrix(counts[chosen]), obs[chosen], var).write_h5ad(name)
        paths.append(name)
    return paths


def convert(paths, store, **options):
    roles = {"pert_col": "perturbation", "cell_type_col": "cell_type", "batch_col": "batch", "control_pert": CONTROL}
    return lp.convert(paths, store, **roles, **options)


@dataclass
class NullStatistics:
    """What an epoch over a null screen shows.

    Attributes
    ----------
    z
        (n_perturbations, n_genes) mean of a perturbation's cells minus that of their controls, divided by its standard
        error for simple random samples.
    correlation
        Median correlation of the differences of two perturbations.
    n_served, n_expected
        Controls that were drawn, and the number expected of as many independent draws.
    worth
        Variance of a control divided by that of the mean over a cell's controls.
    share_variance
        Variance of batch shares among sentences divided by that of simple random samples.
    """

    z: np.ndarray
    correlation: float
    n_served: int
    n_expected: float
    worth: float
    share_variance: float

    @property
    def rms_z(self):
        return float(np.sqrt((self.z**2).mean()))


def measure(loader, n_controls):
    """Run through one epoch of a loader that gives NumPy arrays."""
    groups, length = loader.source.groups, loader.plan.config.sentence_size
    n_perts, n_batches, width = len(groups.labels["perturbation"]), len(groups.labels["batch"]), loader.width
    cells, controls, n = np.zeros((n_perts, width)), np.zeros((n_perts, width)), np.zeros(n_perts)
    squares, served, means, shares = np.zeros(width), [], [], {}
    for batch in loader:
        kept = ~batch.is_padding
        mean = batch.controls[kept].mean(axis=1, dtype=np.float64)
        np.add.at(cells, batch.pert_code[kept], batch.counts[kept])
        np.add.at(controls, batch.pert_code[kept], mean)
        np.add.at(n, batch.pert_code[kept], 1)
        squares += (batch.counts[kept].astype(np.float64) ** 2).sum(axis=0)
        served.append(batch.control_row[kept].ravel())
        means.append(mean)
        for start in range(0, len(kept), length):
            if kept[start : start + length].all():
                counts = np.bincount(batch.batch_code[start : start + length], minlength=n_batches)
                key = (int(batch.pert_code[start]), int(batch.dataset_code[start]))
                shares.setdefault(key, []).append(counts / length)
    variance = squares / n.sum() - (cells.sum(axis=0) / n.sum()) ** 2
    k = loader.config.n_basal_samples
    is_perturbed = (np.arange(n_perts) != groups.control_code) & (n > 0)
    delta = (cells / np.maximum(n, 1)[:, None] - controls / np.maximum(n, 1)[:, None])[is_perturbed]
    of = n[is_perturbed][:, None]
    z = delta / np.sqrt(variance * (1 / of + 1 / (of * k) + 1 / n_controls))
    correlations = np.corrcoef(delta)[np.triu_indices(len(delta), 1)]
    drawn = np.concatenate(served)
    observed = expected = 0.0
    for of_group in shares.values():
        if len(of_group) > 1:
            mean = np.mean(of_group, axis=0)
            observed += np.var(of_group, axis=0, ddof=1).sum()
            expected += (mean * (1 - mean) / length).sum()
    return NullStatistics(
        z,
        float(np.median(correlations)),
        len(np.unique(drawn)),
        n_controls * (1 - (1 - 1 / n_controls) ** len(drawn)),
        float(np.median(variance / np.concatenate(means).var(axis=0))),
        observed / expected if expected else np.nan,
    )
