"""Statistics of an epoch over a null screen: whether cells and controls differ by more than chance allows.

Requires only NumPy, because it also runs in the rivals' own interpreters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Cells(NamedTuple):
    """The cells of a batch, sentence by sentence, and their controls.

    Attributes
    ----------
    counts
        (n_cells, n_genes).
    controls
        (n_cells, k, n_genes).
    control_id
        (n_cells, k) a number for each control.
    perturbation, batch, dataset
        (n_cells,) codes.
    is_padding
        (n_cells,) bool: the cell only fills a sentence or batch.
    """

    counts: NDArray[np.floating]
    controls: NDArray[np.floating]
    control_id: NDArray[np.integer]
    perturbation: NDArray[np.integer]
    batch: NDArray[np.integer]
    dataset: NDArray[np.integer]
    is_padding: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
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
        Variance of a control divided by that of the mean over a cell's controls: the number of independent controls
        that these are worth. Both are within pools: controls of one dataset, and of one batch if they are matched by
        batch. Drawing much of a small pool lowers the variance further; this is not counted.
    most_worth
        The number of controls per cell, or the mean number of controls per pool, whichever is smaller.
    share_variance
        Variance of batch shares among sentences divided by that of simple random samples; NaN if sentences are of one
        batch each, or too few are full.
    """

    z: NDArray[np.float64]
    correlation: float
    n_served: int
    n_expected: float
    worth: float
    most_worth: float
    share_variance: float

    @property
    def rms_z(self) -> float:
        """Root mean square of z: 1 if differences are as large as chance makes them."""
        return float(np.sqrt((self.z**2).mean()))

    @property
    def beyond_3(self) -> float:
        """Share of the differences beyond three standard errors: 0.0027 by chance."""
        return float((np.abs(self.z) > 3).mean())

    @property
    def served(self) -> float:
        """Controls that were drawn, relative to independent draws."""
        return self.n_served / self.n_expected

    def summary(self) -> dict[str, float | None]:
        """The statistics as JSON values, without `z`."""
        names = (
            "rms_z",
            "beyond_3",
            "correlation",
            "served",
            "n_served",
            "n_expected",
            "worth",
            "most_worth",
            "share_variance",
        )
        return {name: None if np.isnan(value := getattr(self, name)) else value for name in names}


class NullTally:
    """Sums over the batches of an epoch, from which the statistics follow.

    Parameters
    ----------
    n_perturbations, n_batches, n_genes, n_datasets
        Sizes, with the control as one of the perturbations.
    sentence_size
        Cells per sentence.
    by_batch
        Whether controls are matched by batch and sentences are of one batch each.
    """

    def __init__(
        self,
        *,
        n_perturbations: int,
        n_batches: int,
        n_genes: int,
        sentence_size: int,
        by_batch: bool,
        n_datasets: int = 1,
    ) -> None:
        self._length, self._by_batch, self._n_batches = sentence_size, by_batch, n_batches
        self._cells, self._controls = np.zeros((n_perturbations, n_genes)), np.zeros((n_perturbations, n_genes))
        self._n = np.zeros(n_perturbations)
        # Cells and control means: sums by pool, sums of squares, cells by pool. A missing dataset has the code -1.
        n_pools = (n_datasets + 1) * (n_batches if by_batch else 1)
        self._sums, self._squares = np.zeros((2, n_pools, n_genes)), np.zeros((2, n_genes))
        self._n_of_pool = np.zeros(n_pools)
        self._served: list[NDArray[np.integer]] = []
        self._shares: dict[tuple[int, int], list[NDArray[np.float64]]] = {}
        self._k = 1

    def add(self, cells: Cells) -> None:
        """Add a batch."""
        kept = ~cells.is_padding
        counts = np.asarray(cells.counts, dtype=np.float64)[kept]
        means = cells.controls[kept].mean(axis=1, dtype=np.float64)
        perturbation, batch = cells.perturbation[kept], cells.batch[kept]
        np.add.at(self._cells, perturbation, counts)
        np.add.at(self._controls, perturbation, means)
        np.add.at(self._n, perturbation, 1)
        pool = cells.dataset[kept].astype(np.int64) + 1
        if self._by_batch:
            pool = pool * self._n_batches + batch
        for number, values in enumerate((counts, means)):
            np.add.at(self._sums[number], pool, values)
            self._squares[number] += (values**2).sum(axis=0)
        np.add.at(self._n_of_pool, pool, 1)
        self._served.append(cells.control_id[kept].ravel())
        self._k = cells.controls.shape[1]
        for start in range(0, len(kept), self._length):
            if kept[start : start + self._length].all() and not self._by_batch:
                share = np.bincount(cells.batch[start : start + self._length], minlength=self._n_batches)
                key = (int(cells.perturbation[start]), int(cells.dataset[start]))
                self._shares.setdefault(key, []).append(share / self._length)

    def statistics(self, *, control: int, n_controls: int) -> NullStatistics:
        """Compute the statistics.

        Parameters
        ----------
        control
            Code of the control among the perturbations.
        n_controls
            Number of controls that could have been drawn.
        """
        total = self._n.sum()
        # Of cells around the mean of all: differences include what batches contribute.
        variance = self._squares[0] / total - (self._cells.sum(axis=0) / total) ** 2
        is_perturbed = (np.arange(len(self._n)) != control) & (self._n > 0)
        n = self._n[is_perturbed][:, None]
        delta = (self._cells[is_perturbed] - self._controls[is_perturbed]) / n
        z = delta / np.sqrt(variance * (1 / n + 1 / (n * self._k) + 1 / n_controls))
        correlations = np.corrcoef(delta)[np.triu_indices(len(delta), 1)]
        drawn = np.concatenate(self._served)
        within = self._squares - (self._sums**2 / np.maximum(self._n_of_pool, 1)[None, :, None]).sum(axis=1)
        most_worth = min(float(self._k), n_controls / int((self._n_of_pool > 0).sum()))
        # The means of whole pools do not vary, apart from rounding.
        worth = float(np.median(within[0] / np.maximum(within[1], 1e-9 * within[0])))
        return NullStatistics(
            z=z,
            correlation=float(np.median(correlations)),
            n_served=len(np.unique(drawn)),
            n_expected=n_controls * (1 - (1 - 1 / n_controls) ** len(drawn)),
            worth=min(worth, most_worth),
            most_worth=most_worth,
            share_variance=self._share_variance(),
        )

    def _share_variance(self) -> float:
        observed = expected = 0.0
        for of_group in self._shares.values():
            if len(of_group) > 1:
                mean = np.mean(of_group, axis=0)
                observed += np.var(of_group, axis=0, ddof=1).sum()
                expected += (mean * (1 - mean) / self._length).sum()
        return observed / expected if expected else float("nan")


def measure(loader: Any) -> NullStatistics:
    """Run through one epoch of a lazypert loader that gives NumPy arrays."""
    groups = loader.source.groups
    tally = NullTally(
        n_perturbations=len(groups.labels["perturbation"]),
        n_batches=len(groups.labels["batch"]),
        n_datasets=len(groups.labels["dataset"]),
        n_genes=loader.width,
        sentence_size=loader.plan.config.sentence_size,
        by_batch=loader.pools.by_batch,
    )
    for batch in loader:
        tally.add(
            Cells(
                counts=batch.counts,
                controls=batch.controls,
                control_id=batch.control_row,
                perturbation=batch.pert_code,
                batch=batch.batch_code,
                dataset=batch.dataset_code,
                is_padding=batch.is_padding,
            )
        )
    return tally.statistics(
        control=int(np.flatnonzero(groups.is_control_code)[0]), n_controls=len(loader.pools.controls)
    )


def pairs_of(loader: Any) -> set[tuple[int, tuple[int, ...]]]:
    """Rows of each cell of an epoch and of the controls of each of its occurrences."""
    return {
        (int(row), tuple(controls.tolist()))
        for batch in loader
        for row, controls, is_padding in zip(batch.row, batch.control_row, batch.is_padding, strict=True)
        if not is_padding
    }
