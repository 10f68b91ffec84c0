"""Figure of read downsampling, and the measurement that it shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert.errors import ConfigError
from lazypert.plots.style import BLUE, GREEN, GREY, ORANGE, SKY, VERMILLION, format_count, new_figure, style_context

if TYPE_CHECKING:
    from collections.abc import Sequence

    import jax
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DownsamplingSweep:
    """Effect of downsampling to several fractions.

    Attributes
    ----------
    fractions
        (n_fractions,) probabilities of keeping a read.
    reads
        (n_fractions,) total reads of all cells after downsampling.
    total
        Reads before downsampling.
    genes
        (n_fractions, n_cells) genes detected in each cell.
    expected_variance, observed_variance
        (n_fractions, n_bins) binomial variance ``n f (1 - f)``, and variance over repeated draws, in
        squared reads. Both are means over entries of similar count ``n``, which share a bin.
    """

    fractions: NDArray[np.float64]
    reads: NDArray[np.float64]
    total: float
    genes: NDArray[np.int64]
    expected_variance: NDArray[np.float64]
    observed_variance: NDArray[np.float64]

    def __repr__(self) -> str:
        fractions = ", ".join(f"{fraction:g}" for fraction in self.fractions)
        return f"DownsamplingSweep({self.total:,.0f} reads of {self.genes.shape[1]:,} cells to fractions {fractions})"


def downsampling_sweep(
    counts: NDArray[Any],
    fractions: Sequence[float],
    *,
    key: jax.Array,
    draws: int = 200,
    entries: int = 2_000,
) -> DownsamplingSweep:
    """Downsample cells to several fractions, and measure reads, genes detected and variance.

    Parameters
    ----------
    counts
        (cell, gene) reads.
    fractions
        Probabilities of keeping a read.
    key
        A JAX key.
    draws
        Number of draws over which the variance is measured.
    entries
        Measure the variance of at most this many non-zero entries of `counts`.

    Raises
    ------
    ConfigError
        When there are no fractions or no counts.
    NotCountsError
        When `counts` are not non-negative integers.
    """
    import jax

    from lazypert.downsampling.config import DownsamplingConfig
    from lazypert.downsampling.downsampler import ReadDownsampler

    if not len(fractions) or not np.size(counts):
        raise ConfigError(
            f"counts, fractions: got {np.size(counts)} counts and {len(fractions)} fractions, "
            "expected at least one of each."
        )
    sample = _sample_entries(np.asarray(counts), entries)
    bin_of = np.unique(np.floor(4 * np.log2(np.maximum(sample, 1))), return_inverse=True)[1]
    bin_size = np.bincount(bin_of)
    cells_and_copies = _append_copies(counts, sample, draws)
    reads, genes, expected, observed = [], [], [], []
    for number, fraction in enumerate(fractions):
        downsample = ReadDownsampler(DownsamplingConfig(fraction=fraction))
        out = np.asarray(downsample(cells_and_copies, key=jax.random.fold_in(key, number)))
        cells, copies = out[: len(counts)], out[len(counts) :].reshape(draws, -1)[:, : len(sample)]
        reads.append(float(cells.sum(dtype=np.float64)))
        genes.append((cells > 0).sum(axis=1))
        variance = copies.var(axis=0, ddof=1, dtype=np.float64)
        observed.append(np.bincount(bin_of, variance) / bin_size)
        expected.append(np.bincount(bin_of, sample * fraction * (1 - fraction)) / bin_size)
    return DownsamplingSweep(
        fractions=np.asarray(fractions, dtype=np.float64),
        reads=np.array(reads),
        total=float(np.sum(counts, dtype=np.float64)),
        genes=np.array(genes),
        expected_variance=np.array(expected),
        observed_variance=np.array(observed),
    )


def _sample_entries(counts: NDArray[Any], n: int) -> NDArray[Any]:
    """At most `n` non-zero entries, ascending, evenly spaced by rank."""
    nonzero = np.sort(counts[np.nonzero(counts)])
    return nonzero[np.unique(np.linspace(0, max(len(nonzero) - 1, 0), min(len(nonzero), n)).astype(int))]


def _append_copies(counts: NDArray[Any], sample: NDArray[Any], n_copies: int) -> NDArray[Any]:
    """Append copies of a sample to the (cell, gene) counts, as rows: JAX compiles once per shape."""
    n_genes = counts.shape[1]
    padded = np.pad(sample, (0, -len(sample) % n_genes)).reshape(-1, n_genes)
    return np.concatenate([counts, np.tile(padded, (n_copies, 1))])


def plot_downsampling(sweep: DownsamplingSweep) -> Figure:
    """Draw reads, variance and genes detected against the fraction of reads kept.

    Raises
    ------
    LazypertError
        When matplotlib is not installed.
    """
    with style_context():
        figure = new_figure(10.2, 3.3)
        left, middle, right = figure.subplots(1, 3)
        _draw_reads(left, sweep)
        _draw_variance(middle, sweep)
        _draw_genes(right, sweep)
    return figure


def _draw_reads(ax: Axes, sweep: DownsamplingSweep) -> None:
    ax.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--", label="expected")
    ax.plot(sweep.fractions, sweep.reads / sweep.total, "o", color=BLUE, ms=6, label="observed")
    ax.set(xlim=(0, 1.05), ylim=(0, 1.05), xlabel="fraction of reads kept, f", ylabel="reads after / reads before")
    ax.set_title(f"Reads: {format_count(int(sweep.total))} in {sweep.genes.shape[1]:,} cells")
    ax.legend(loc="upper left")


def _draw_variance(ax: Axes, sweep: DownsamplingSweep) -> None:
    by_fraction = np.argsort(-sweep.fractions)
    styles = zip(
        (BLUE, VERMILLION, GREEN, ORANGE, SKY) * len(by_fraction),
        ("o", "s", "^", "D", "v") * len(by_fraction),
        strict=True,
    )
    drawn_values = []
    for index in by_fraction:
        expected, observed = sweep.expected_variance[index], sweep.observed_variance[index]
        is_drawn = (expected > 0) & (observed > 0)
        if not is_drawn.any():
            continue
        colour, marker = next(styles)
        label = f"f = {sweep.fractions[index]:g}"
        ax.plot(expected[is_drawn], observed[is_drawn], marker, color=colour, ms=4.5, alpha=0.85, mew=0, label=label)
        drawn_values += [expected[is_drawn], observed[is_drawn]]
    ax.set(xlabel="binomial variance, n f (1 - f)  (reads²)", ylabel="variance over draws  (reads²)")
    ax.set_title("Variance of entries with n reads")
    if drawn_values:
        values = np.concatenate(drawn_values)
        ends = [values.min() / 1.3, values.max() * 1.3]
        ax.plot(ends, ends, color=GREY, lw=1, ls="--", zorder=0)
        ax.set(xscale="log", yscale="log")
        ax.legend(loc="upper left", handletextpad=0.1)


def _draw_genes(ax: Axes, sweep: DownsamplingSweep) -> None:
    by_fraction = np.argsort(sweep.fractions)
    low, median, high = np.quantile(sweep.genes[by_fraction], (0.05, 0.5, 0.95), axis=1)
    fractions = sweep.fractions[by_fraction]
    ax.fill_between(fractions, low, high, color=SKY, alpha=0.35, lw=0, label="5th to 95th percentile of cells")
    ax.plot(fractions, median, "o-", color=BLUE, ms=5, lw=1.2, label="median")
    ax.set(xlim=(0, 1.05), ylim=(0, None), xlabel="fraction of reads kept, f", ylabel="genes detected per cell")
    ax.set_title("Genes detected")
    ax.legend(loc="lower right")
