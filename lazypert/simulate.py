"""Made-up perturbation screens with known truth, written as H5AD in bounded memory.

`reference_screen` writes the small screen that the examples and the tests use. `simulate_screen`
writes realistic screens of any size: depth, expression, overdispersion and knockdown follow
distributions estimated from the non-targeting cells of published CRISPRi screens.

The model of `simulate_screen`. The reads of gene g in cell c are negative binomial with mean
``m = depth_c * profile_tg * batch_bg * fold_pg`` and variance ``m + alpha_g * m**2``, for the cell's
type t, batch b and perturbation p. They are drawn exactly, as the compound Poisson that a negative
binomial is: ``Poisson(log(1 + alpha m) / alpha)`` clusters of log-series many reads each. The clusters
are the arrivals of one Poisson process that runs along the genes, so a cell costs a logarithm
for every gene and a few draws for every cluster, not a gamma and a Poisson draw for every gene, and
its row comes out sorted.

What is approximate: genes are independent given a cell's labels and depth (no regulatory programmes,
doublets or ambient reads), every guide of a target works equally well, and a target's effects are the
same in every cell type.
"""

from __future__ import annotations

import contextlib
import math
import uuid
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lazypert.csr import kernel
from lazypert.errors import ConfigError, StoreExistsError, StoreNotFoundError
from lazypert.memory import cpu_count
from lazypert.rng import generator

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    import h5py
    from numpy.typing import NDArray

__all__ = ["SimulationConfig", "SimulationTruth", "reference_screen", "simulate_screen"]

# Estimated from the non-targeting THP-1 cells of an ECCITE-seq CRISPR screen (2,304 cells).
DEPTH_LOG_MEAN, DEPTH_LOG_SD = 9.37, 0.54  # natural log of the reads of a cell
CP10K_LOG10_MEAN, CP10K_LOG10_SD = -1.04, 0.77  # log10 of a gene's mean counts per 10,000
DENSITY = 0.2  # share of the genes that a cell shows, when `nnz_per_cell` is left open
# Dispersion alpha of a gene of m reads a cell: (CONST + OVER_MEAN / m) * LogNormal(0, LOG_SD).
ALPHA_CONST, ALPHA_OVER_MEAN, ALPHA_LOG_SD = 0.25, 0.1, 0.5
# Knockdown in CRISPRi screens: range of the on-target log2 fold changes.
ON_TARGET_LOG2 = (-3.5, -0.3)
# One target in five has a strong phenotype. The shares are of genes that it shifts.
STRONG_TARGETS, STRONG_SHARE, WEAK_SHARE, SHIFT_LOG2_SD = 0.2, (0.07, 0.12), (0.0, 0.01), 0.75
CELLS_PER_GUIDE, GUIDES_PER_TARGET = 190, (3, 4)
# Chosen, not estimated: markers of a cell type, batch effects, uneven types and guide libraries.
MARKER_SHARE, MARKER_LOG2_SD, BATCH_LOG_SD, TYPE_DIRICHLET, TARGET_LOG_SD = 0.25, 1.0, 0.1, 10.0, 0.3
UNASSIGNED = "unassigned"

# Cells that share one random stream. Part of the meaning of a seed: changing it changes every screen.
STREAM_CELLS = 128
CHUNK = 131_072  # elements of an HDF5 chunk of X: 512 KiB, inside HDF5's chunk cache

_TARGETS = ("BRCA1", "TP53", "KRAS", "MYC", "EGFR")
_TYPES = ("Astrocyte", "Microglia", "Neuron")


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationConfig:
    """What to simulate.

    Parameters
    ----------
    n_cells, n_genes : int
        Size of the matrix.
    n_perturbations : int, optional
        Targets, beside the control and the unassigned cells. By default as many as give
        every guide about `cells_per_guide` cells.
    cell_types : tuple of str
        Labels of the cell types. They come in uneven numbers.
    n_batches : int
        Batches, equally likely: ``"batch1"`` and so on.
    nnz_per_cell : float, optional
        Mean number of genes seen in a cell; the depth is scaled to give it. Default a fifth
        of the genes, as in real screens. At most 0.8 of them.
    cells_per_guide : int, optional
        Decides the number of targets where `n_perturbations` does not. Default 190, as in
        published screens.
    control_fraction, unassigned_fraction : float
        Expected shares of the cells with a non-targeting guide and with no guide call.
    control_pert : str
        Label of the control cells.
    order : {"random", "grouped"}
        Order of the cells: any, as a sequencer gives them, or sorted by (cell_type,
        perturbation).
    compression : {"gzip"}, optional
        Compression of the large arrays.
    seed : int
        Decides the whole screen, together with the options above.
    block_cells : int
        Cells sampled and written at once, a multiple of 128. Decides the memory
        (a few blocks for every thread) and nothing else.

    Raises
    ------
    ConfigError
        If a value is out of range or contradicts another.
    """

    n_cells: int
    n_genes: int = 18_000
    n_perturbations: int | None = None
    cell_types: tuple[str, ...] = _TYPES
    n_batches: int = 2
    nnz_per_cell: float | None = None
    cells_per_guide: int | None = None
    control_fraction: float = 0.11
    unassigned_fraction: float = 0.05
    control_pert: str = "non-targeting"
    order: Literal["random", "grouped"] = "random"
    compression: Literal["gzip"] | None = None
    seed: int = 0
    block_cells: int = 1024

    def __post_init__(self) -> None:
        for name, least in (
            ("n_cells", 1),
            ("n_genes", 2),
            ("n_batches", 1),
            ("seed", 0),
            ("block_cells", 1),
        ):
            _require_integer(name, getattr(self, name), least)
        for name in ("n_perturbations", "cells_per_guide"):
            if getattr(self, name) is not None:
                _require_integer(name, getattr(self, name), 1)
        targets, shares = self.n_perturbations, self.control_fraction + self.unassigned_fraction
        lonely = targets is None or self.cells_per_guide is None
        nnz, most = self.nnz_per_cell, 0.8 * self.n_genes
        for name, holds, expected in (
            ("block_cells", self.block_cells % STREAM_CELLS == 0, f"a multiple of {STREAM_CELLS}"),
            ("control_fraction", 0 <= self.control_fraction < 1, "a share in [0, 1)"),
            ("unassigned_fraction", 0 <= self.unassigned_fraction < 1, "a share in [0, 1)"),
            ("control_fraction", shares < 1, "less than 1 - unassigned_fraction: leave cells to perturb"),
            ("cell_types", _distinct_labels(self.cell_types), "a tuple of distinct, non-empty labels"),
            ("control_pert", self.control_pert not in ("", UNASSIGNED), f"a label, not {UNASSIGNED!r}"),
            ("order", self.order in ("random", "grouped"), "'random' or 'grouped'"),
            ("compression", self.compression in (None, "gzip"), "None or 'gzip'"),
            (
                "nnz_per_cell",
                nnz is None or 0 < nnz <= most,
                f"more than 0, and {most:g} (0.8 n_genes) at most",
            ),
            ("n_perturbations", targets is None or targets <= self.n_genes, "no more targets than genes"),
            ("cells_per_guide", lonely, "None beside n_perturbations: each decides the number of targets"),
        ):
            _require(holds, name, getattr(self, name), expected)

    @property
    def n_targets(self) -> int:
        """Number of perturbed genes, whichever option decides it (at most half of the genes by default)."""
        if self.n_perturbations is not None:
            return self.n_perturbations
        cells = self.n_cells * (1 - self.control_fraction - self.unassigned_fraction)
        guides = cells / (self.cells_per_guide or CELLS_PER_GUIDE)
        return min(max(1, round(guides / np.mean(GUIDES_PER_TARGET))), self.n_genes // 2)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SimulationTruth:
    """What is true of a simulated screen.

    Parameters
    ----------
    targets : tuple of str
        Perturbed genes, as in ``var["gene_name"]`` and ``obs["perturbation"]``.
    log2_fold_change : ndarray of float64, (target,)
        On-target effect: log2 of the mean in perturbed cells over the mean in controls.
    n_shifted_genes : ndarray of int64, (target,)
        Other genes whose mean the perturbation changes.
    perturbations, cell_types : tuple of str
        Labels, in the order of the file's categories and of `group_cells`.
    group_cells : ndarray of int64, (cell_type, perturbation)
        Cells of every group.
    nnz, n_umis : int
        Stored values and reads (UMIs) of the whole screen.
    """

    targets: tuple[str, ...]
    log2_fold_change: NDArray[np.float64]
    n_shifted_genes: NDArray[np.int64]
    perturbations: tuple[str, ...]
    cell_types: tuple[str, ...]
    group_cells: NDArray[np.int64]
    nnz: int
    n_umis: int

    @property
    def residual(self) -> NDArray[np.float64]:
        """Share of a target's expression that is left in its cells, (target,)."""
        return np.exp2(self.log2_fold_change)


def reference_screen(path: str | os.PathLike[str], *, seed: int = 0, overwrite: bool = False) -> Path:
    """Write the reference screen: 3 cell types x 6 perturbations x 50 cells, 200 genes.

    Counts are Poisson(5); those of a target gene are thinned to a tenth in its cells. Batches alternate
    from cell to cell by name, and the cells lie in shuffled order. ``obsm["X_pca"]`` is the PCA
    (20 components) of ``log1p`` counts per 10,000; ``var["highly_variable"]`` marks 50 genes.

    Parameters
    ----------
    path
        The ``.h5ad`` to write.
    seed
        Decides counts and order.
    overwrite
        Replace an existing file.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    StoreExistsError
        If `path` exists and `overwrite` is false.
    StoreNotFoundError
        If the folder of `path` does not exist.
    """
    _require_integer("seed", seed, 0)
    rng = generator(seed, 0)
    perturbations = sorted(("non-targeting", *_TARGETS))
    shape = (len(_TYPES), len(perturbations), 50)
    types, perts, cells = (axis.ravel() for axis in np.indices(shape))
    genes = [*_TARGETS, *_numbered("Gene_{:0{}d}", range(len(_TARGETS), 200), 200, least_width=4)]
    counts = rng.poisson(5.0, (cells.size, len(genes)))
    for gene, target in enumerate(_TARGETS):
        hit = perts == perturbations.index(target)
        counts[hit, gene] = rng.binomial(counts[hit, gene], 0.1)
    order = rng.permutation(cells.size)
    counts = counts[order]
    variable = np.zeros(len(genes), dtype=bool)
    variable[np.argsort(-counts.var(axis=0), kind="stable")[:50]] = True
    rows, columns = np.nonzero(counts)
    block = _Block(
        indptr=np.searchsorted(rows, np.arange(cells.size + 1)),
        indices=columns.astype(np.int32),
        data=counts[rows, columns].astype(np.float32),
        obs={
            "perturbation": perts[order],
            "cell_type": types[order],
            "batch": order % 2,
        },
    )
    categories = {"perturbation": perturbations, "cell_type": _TYPES, "batch": ["batch1", "batch2"]}
    with _replacing(Path(path), overwrite=overwrite) as file:
        writer = _ScreenWriter(file, counts.shape, categories)
        writer.append(block, _numbered("CELL{:0{}d}-1", order, len(order), least_width=6))
        _write_var(file, genes, variable)
        _encode(file["obsm"].create_dataset("X_pca", data=_pca(counts, 20)), "array", "0.2.0")
    return Path(path)


def simulate_screen(
    path: str | os.PathLike[str],
    config: SimulationConfig,
    *,
    threads: int | None = None,
    overwrite: bool = False,
) -> SimulationTruth:
    """Write a realistic screen as H5AD, in memory that does not grow with it.

    obs has the categoricals ``perturbation``, ``guide``, ``cell_type`` and ``batch`` and the integer
    ``n_umis``; var has ``gene_name`` and ``highly_variable``. X is CSR: float32 counts, int32 indices,
    and an indptr of int32, or int64 from about 1.7e9 nonzeros on.

    Parameters
    ----------
    path
        The ``.h5ad`` to write. It appears when it is complete.
    config
        What to simulate.
    threads
        Threads that sample. Default: one per core. They do not change the result.
    overwrite
        Replace an existing file.

    Returns
    -------
    SimulationTruth
        What a method run on the screen ought to find.

    Raises
    ------
    StoreExistsError
        If `path` exists and `overwrite` is false.
    StoreNotFoundError
        If the folder of `path` does not exist.
    ConfigError
        If `threads` is not positive, or `control_pert` is the name of a gene.

    Examples
    --------
    >>> import tempfile
    >>> config = SimulationConfig(n_cells=256, n_genes=300, n_perturbations=4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     truth = simulate_screen(f"{folder}/screen.h5ad", config)
    >>> int(truth.group_cells.sum()), truth.group_cells.shape
    (256, (3, 6))
    """
    threads = cpu_count() if threads is None else threads
    _require_integer("threads", threads, 1)
    model = _build_model(config)
    design = model.design
    types = sorted(config.cell_types)
    categories = {
        "perturbation": design.labels,
        "guide": design.guides,
        "cell_type": types,
        "batch": [f"batch{batch + 1}" for batch in range(config.n_batches)],
    }
    # A quarter of headroom over the expected size: the choice must be made before the first row.
    expected = 1.25 * config.n_cells * _nnz_wanted(config)
    group_cells = np.zeros((len(types), len(design.labels)), dtype=np.int64)
    n_umis = 0
    with _replacing(Path(path), overwrite=overwrite) as file:
        writer = _ScreenWriter(
            file,
            (config.n_cells, config.n_genes),
            categories,
            numbers=("n_umis",),
            index_type=np.int32 if expected < np.iinfo(np.int32).max else np.int64,
            compression=config.compression,
        )
        for block in _sampled_blocks(model, config, threads):
            rows = range(writer.n_rows, writer.n_rows + block.n_cells)
            writer.append(block, _numbered("CELL{:0{}d}-1", rows, config.n_cells, least_width=6))
            np.add.at(group_cells, (block.obs["cell_type"], block.obs["perturbation"]), 1)
            n_umis += int(block.obs["n_umis"].sum(dtype=np.int64))
        _write_var(file, model.gene_names, model.variable)
    return SimulationTruth(
        targets=tuple(model.gene_names[gene] for gene in model.targets),
        log2_fold_change=model.on_target_log2,
        n_shifted_genes=np.diff(model.effect_start) - 1,
        perturbations=tuple(design.labels),
        cell_types=tuple(types),
        group_cells=group_cells,
        nnz=writer.nnz,
        n_umis=n_umis,
    )


def _require_integer(name: str, value: object, least: int) -> None:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    _require(whole and int(value) >= least, name, value, f"an integer, {least} or more")  # type: ignore[call-overload]


def _distinct_labels(labels: object) -> bool:
    return isinstance(labels, tuple) and 0 < len(set(labels)) == len(labels) and all(labels)


def _require(holds: bool, name: str, got: object, expected: str) -> None:
    if not holds:
        raise ConfigError(f"{name} cannot be used: got {got!r}, expected {expected}.")


def _numbered(template: str, numbers: Iterable[int], total: int, *, least_width: int) -> list[str]:
    """Names such as ``CELL000123-1``, padded so that they sort like their numbers."""
    width = max(least_width, len(str(total - 1)))
    return [template.format(number, width) for number in numbers]


# --- The model ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Design:
    """How cells come to their labels."""

    labels: list[str]  # perturbation categories, sorted
    label_target: NDArray[np.int64]  # (label,), -1 where nothing is perturbed
    guides: list[str]
    guide_start: NDArray[np.int64]  # (label + 1,), into guides
    group_ends: NDArray[np.float64]  # (cell_type * label,), running sum of the groups' shares or cells


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Model:
    """Everything that is decided before the first cell."""

    gene_names: list[str]
    variable: NDArray[np.bool_]  # (gene,)
    profile: NDArray[np.float32]  # (cell_type, gene), rows sum to 1
    batch: NDArray[np.float32]  # (batch, gene), factors
    alpha: NDArray[np.float32]  # (gene,), dispersion
    depth_log_mean: float  # natural log of reads
    targets: NDArray[np.int64]  # (target,), genes in order
    on_target_log2: NDArray[np.float64]  # (target,)
    effect_start: NDArray[np.int64]  # (target + 1,), into the next two
    effect_gene: NDArray[np.int32]
    effect_fold: NDArray[np.float32]
    design: _Design


def _build_model(config: SimulationConfig) -> _Model:
    rng = generator(config.seed, 0)
    names = _numbered("Gene_{:0{}d}", range(config.n_genes), config.n_genes, least_width=4)
    _require(config.control_pert not in names, "control_pert", config.control_pert, "no gene's name")
    shape = (len(config.cell_types), config.n_genes)
    expression = 10 ** rng.normal(CP10K_LOG10_MEAN, CP10K_LOG10_SD, config.n_genes)
    markers = rng.normal(0, MARKER_LOG2_SD, shape) * (rng.random(shape) < MARKER_SHARE)
    profile = expression * np.exp2(markers)
    profile /= profile.sum(axis=1, keepdims=True)
    type_share = rng.dirichlet(np.full(shape[0], TYPE_DIRICHLET))
    noise = rng.lognormal(0, ALPHA_LOG_SD, config.n_genes)
    depth_log_mean = _depth_for(_nnz_wanted(config), profile, type_share, noise)
    means = profile * _mean_depth(depth_log_mean)
    alpha = _dispersion(type_share @ means, noise)
    # Targets are expressed genes, as libraries are designed.
    expressed = np.argsort(-expression, kind="stable")[: max(config.n_targets, config.n_genes // 2)]
    targets = np.sort(rng.choice(expressed, config.n_targets, replace=False))
    on_target = rng.uniform(*ON_TARGET_LOG2, config.n_targets)
    start, gene, fold = _draw_effects(rng, targets, on_target, config.n_genes)
    return _Model(
        gene_names=names,
        variable=_most_variable(means, alpha, type_share),
        profile=profile.astype(np.float32),
        batch=rng.lognormal(0, BATCH_LOG_SD, (config.n_batches, config.n_genes)).astype(np.float32),
        alpha=alpha.astype(np.float32),
        depth_log_mean=depth_log_mean,
        targets=targets,
        on_target_log2=on_target,
        effect_start=start,
        effect_gene=gene,
        effect_fold=fold,
        design=_draw_design(rng, [names[target] for target in targets], type_share, config),
    )


def _nnz_wanted(config: SimulationConfig) -> float:
    return DENSITY * config.n_genes if config.nnz_per_cell is None else config.nnz_per_cell


def _mean_depth(log_mean: float) -> float:
    return math.exp(log_mean + DEPTH_LOG_SD**2 / 2)


def _dispersion(mean: NDArray[np.float64], noise: NDArray[np.float64]) -> NDArray[np.float64]:
    return (ALPHA_CONST + ALPHA_OVER_MEAN / mean) * noise


def _depth_for(
    nnz: float, profile: NDArray[np.float64], type_share: NDArray[np.float64], noise: NDArray[np.float64]
) -> float:
    """Log-mean of the depth at which a cell shows `nnz` genes on average.

    A gene of mean m is seen with probability ``1 - (1 + alpha m) ** (-1 / alpha)``; the mean over the
    lognormal depth is a Gauss-Hermite sum. Batch and perturbation effects are left out: they average
    to about 1.
    """
    from scipy.optimize import brentq

    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    weights /= weights.sum()

    def excess(log_mean: float) -> float:
        alpha = _dispersion(type_share @ profile * _mean_depth(log_mean), noise)
        seen = 0.0
        for share, row in zip(type_share, profile, strict=True):
            for node, weight in zip(nodes, weights, strict=True):
                mean = math.exp(log_mean + DEPTH_LOG_SD * node) * row
                seen += share * weight * -np.expm1(-np.log1p(alpha * mean) / alpha).sum()
        return float(seen - nnz)

    # The measured depth belongs to about 18,000 genes; the bracket spans e**30 on both sides of it.
    return float(brentq(excess, DEPTH_LOG_MEAN - 30, DEPTH_LOG_MEAN + 30, xtol=1e-3))


def _draw_effects(
    rng: np.random.Generator, targets: NDArray[np.int64], on_target: NDArray[np.float64], n_genes: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """Genes and folds of every target: its own gene first, then those that it shifts."""
    strong = rng.random(len(targets)) < STRONG_TARGETS
    shares = np.where(strong, rng.uniform(*STRONG_SHARE, len(targets)), rng.uniform(*WEAK_SHARE, len(targets)))
    genes, logs = [], []
    for target, own, share in zip(targets, on_target, shares, strict=True):
        shifted = rng.choice(n_genes, round(share * n_genes), replace=False)
        shifted = shifted[shifted != target]
        genes.append(np.concatenate([[target], shifted]))
        logs.append(np.concatenate([[own], rng.normal(0, SHIFT_LOG2_SD, len(shifted))]))
    start = np.cumsum([0, *(len(row) for row in genes)], dtype=np.int64)
    return start, np.concatenate(genes).astype(np.int32), np.exp2(np.concatenate(logs)).astype(np.float32)


def _most_variable(
    means: NDArray[np.float64], alpha: NDArray[np.float64], type_share: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Mark the fifth of the genes (2,000 at most) with the largest variance-to-mean ratio in the model."""
    mean = type_share @ means
    variance = mean + type_share @ (alpha * means**2) + type_share @ (means - mean) ** 2
    marked = np.zeros(len(mean), dtype=bool)
    marked[np.argsort(-variance / mean, kind="stable")[: max(1, min(2000, len(mean) // 5))]] = True
    return marked


def _draw_design(
    rng: np.random.Generator, targets: list[str], type_share: NDArray[np.float64], config: SimulationConfig
) -> _Design:
    """Draw guides, and the sizes of groups: shares for the random order, cells for the grouped one."""
    n_guides = dict(zip(targets, rng.integers(*GUIDES_PER_TARGET, len(targets), endpoint=True), strict=True))
    weights = np.array(list(n_guides.values())) * rng.lognormal(0, TARGET_LOG_SD, len(targets))
    perturbed = 1 - config.control_fraction - config.unassigned_fraction
    share = dict(zip(targets, perturbed * weights / weights.sum(), strict=True))
    if config.control_fraction:
        share[config.control_pert] = config.control_fraction
        # As many control guides as give each about the cells of a targeting one.
        per_guide = perturbed / sum(n_guides.values())
        n_guides[config.control_pert] = max(GUIDES_PER_TARGET[0], round(config.control_fraction / per_guide))
    if config.unassigned_fraction:
        share[UNASSIGNED], n_guides[UNASSIGNED] = config.unassigned_fraction, 1
    labels = sorted(share)
    guides = []
    for label in labels:
        numbered = [f"{label}_g{guide + 1}" for guide in range(n_guides[label])]
        guides += [UNASSIGNED] if label == UNASSIGNED else numbered
    groups = np.outer(type_share, [share[label] for label in labels]).ravel()
    if config.order == "grouped":
        groups = rng.multinomial(config.n_cells, groups / groups.sum()).astype(np.float64)
    row_of = {target: row for row, target in enumerate(targets)}
    return _Design(
        labels=labels,
        label_target=np.array([row_of.get(label, -1) for label in labels]),
        guides=guides,
        guide_start=np.cumsum([0, *(n_guides[label] for label in labels)]),
        group_ends=np.cumsum(groups),
    )


# --- Sampling -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Block:
    """Rows to write: CSR parts, and one value a row for every obs column."""

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    data: NDArray[np.float32]
    obs: dict[str, NDArray[Any]]

    @property
    def n_cells(self) -> int:
        return len(self.indptr) - 1


def _sampled_blocks(model: _Model, config: SimulationConfig, threads: int) -> Iterator[_Block]:
    """Blocks in order; at most ``threads + 1`` are being made or waiting."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[_Block]] = deque()
        for first in range(0, config.n_cells, config.block_cells):
            waiting.append(pool.submit(_sample_block, model, config, first))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _sample_block(model: _Model, config: SimulationConfig, first: int) -> _Block:
    last = min(first + config.block_cells, config.n_cells)
    parts = [
        _sample_stream(model, config, start, min(start + STREAM_CELLS, last))
        for start in range(first, last, STREAM_CELLS)
    ]
    offsets = np.cumsum([0, *(part.indptr[-1] for part in parts)])
    pieces = [part.indptr[1:] + offset for part, offset in zip(parts, offsets[:-1], strict=True)]
    return _Block(
        indptr=np.concatenate([[0], *pieces]),
        indices=np.concatenate([part.indices for part in parts]),
        data=np.concatenate([part.data for part in parts]),
        obs={name: np.concatenate([part.obs[name] for part in parts]) for name in parts[0].obs},
    )


def _sample_stream(model: _Model, config: SimulationConfig, first: int, last: int) -> _Block:
    """Sample the cells of one random stream; they depend on the seed and on `first` only."""
    design = model.design
    rng = generator(config.seed, 1, first // STREAM_CELLS)
    n_cells = last - first
    # The grouped order has the groups' sizes drawn already, so the row decides; the random order draws.
    position = np.arange(first, last) if config.order == "grouped" else rng.random(n_cells)
    group = np.searchsorted(design.group_ends, position, side="right")
    cell_type, label = np.divmod(np.minimum(group, len(design.group_ends) - 1), len(design.labels))
    guide = rng.integers(design.guide_start[label], design.guide_start[label + 1])
    batch = rng.integers(config.n_batches, size=n_cells)
    depth = rng.lognormal(model.depth_log_mean, DEPTH_LOG_SD, n_cells)
    # Room for full rows; the pages that the counts do not reach are never touched.
    indices = np.empty(n_cells * config.n_genes, dtype=np.int32)
    data = np.empty(n_cells * config.n_genes, dtype=np.float32)
    indptr = np.zeros(n_cells + 1, dtype=np.int64)
    n_umis = np.zeros(n_cells, dtype=np.int64)
    _sample_rows(
        rng,
        depth,
        (cell_type, batch, design.label_target[label]),
        (model.profile, model.batch, model.alpha),
        (model.effect_start, model.effect_gene, model.effect_fold),
        (indptr, indices, data, n_umis),
    )
    nnz = indptr[-1]
    obs = {"perturbation": label, "guide": guide, "cell_type": cell_type, "batch": batch, "n_umis": n_umis}
    return _Block(indptr=indptr, indices=indices[:nnz].copy(), data=data[:nnz].copy(), obs=obs)


@kernel
def _sample_rows(
    rng: np.random.Generator, depth: Any, labels: Any, rates: Any, effects: Any, out: Any
) -> None:  # pragma: no cover - compiled
    """Fill `out` (indptr, indices, data, reads of a cell) with negative binomial rows.

    A Poisson process runs along the genes, at rate ``log(1 + alpha m) / alpha`` over each; every
    arrival is a cluster of log-series many reads.
    """
    cell_type, batch, target = labels
    profile, batch_factor, alpha = rates
    effect_start, effect_gene, effect_fold = effects
    indptr, indices, data, n_umis = out
    n_genes = profile.shape[1]
    fold = np.ones(n_genes, np.float32)
    inverse_alpha = 1.0 / alpha.astype(np.float64)
    position = 0
    for cell in range(len(depth)):
        own = target[cell]
        if own >= 0:
            for effect in range(effect_start[own], effect_start[own + 1]):
                fold[effect_gene[effect]] = effect_fold[effect]
        mean_row, batch_row = profile[cell_type[cell]], batch_factor[batch[cell]]
        until_next = rng.standard_exponential()
        for gene in range(n_genes):
            mean = depth[cell] * mean_row[gene] * batch_row[gene] * fold[gene]
            odds = alpha[gene] * mean
            log_term = math.log(1.0 + odds)
            until_next -= log_term * inverse_alpha[gene]
            if until_next < 0.0:
                reads = 0
                while until_next < 0.0:
                    reads += _log_series(rng, odds, log_term)
                    until_next += rng.standard_exponential()
                indices[position] = gene
                data[position] = reads
                n_umis[cell] += reads
                position += 1
        indptr[cell + 1] = position
        if own >= 0:
            for effect in range(effect_start[own], effect_start[own + 1]):
                fold[effect_gene[effect]] = 1.0


@kernel
def _log_series(rng: np.random.Generator, odds: float, log_term: float) -> int:  # pragma: no cover - compiled
    """Draw from the log-series distribution with ``p = odds / (1 + odds)``; `log_term` is ``log(1 + odds)``.

    Algorithm LK of Kemp, "Efficient generation of logarithmically distributed pseudo-random
    variables", Applied Statistics 30 (1981).
    """
    v = rng.random()
    if v * (1.0 + odds) >= odds:
        return 1
    q = -math.expm1(-log_term * rng.random())
    if v <= q * q:
        return int(1.0 + math.log(v) / math.log(q)) if v > 0.0 else 1
    return 1 if v > q else 2


# --- Writing ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _replacing(path: Path, *, overwrite: bool) -> Iterator[h5py.File]:
    """Open a new HDF5 file beside `path`; it takes the name when it is complete, or vanishes."""
    import h5py

    if path.exists() and not overwrite:
        raise StoreExistsError(f"{str(path)!r} exists already. Choose another name, or pass overwrite=True.")
    if not path.parent.is_dir():
        raise StoreNotFoundError(f"There is no folder {str(path.parent)!r} to write {path.name!r} in. Make it.")
    partial = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:12]}")
    try:
        # The cache holds the last, half-filled chunk of every array, so that gzip runs once a chunk.
        with h5py.File(partial, "x", rdcc_nbytes=4 * 1024**2) as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class _ScreenWriter:
    """Writes a screen's frame when it is made, then its rows block by block.

    The layout is AnnData's: https://anndata.readthedocs.io/en/stable/fileformat-prose.html
    """

    def __init__(
        self,
        file: h5py.File,
        shape: tuple[int, int],
        categories: Mapping[str, Sequence[str]],
        *,
        numbers: tuple[str, ...] = (),
        index_type: type[np.signedinteger[Any]] = np.int32,
        compression: str | None = None,
    ) -> None:
        _encode(file, "anndata", "0.1.0")
        for name in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
            _encode(file.create_group(name), "dict", "0.1.0")
        self.n_rows = self.nnz = 0
        self._matrix = _encode(file.create_group("X"), "csr_matrix", "0.1.0", shape=np.array(shape))
        for name, kind in (("data", "float32"), ("indices", "int32")):
            self._matrix.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(CHUNK,), compression=compression)
        self._matrix.create_dataset("indptr", (shape[0] + 1,), index_type)
        obs = _encode(file.create_group("obs"), "dataframe", "0.2.0", _index="_index")
        obs.attrs["column-order"] = [*categories, *numbers]
        self._index = _strings(obs, "_index", shape[0])
        self._columns = {name: _array(obs, name, shape[0], np.int32, compression) for name in numbers}
        for name, labels in categories.items():
            group = _encode(obs.create_group(name), "categorical", "0.2.0", ordered=False)
            _strings(group, "categories", len(labels))[:] = list(labels)
            dtype = np.min_scalar_type(-len(labels))
            self._columns[name] = _array(group, "codes", shape[0], dtype, compression)

    def append(self, block: _Block, names: Sequence[str]) -> None:
        """Write the next rows."""
        first, last = self.n_rows, self.n_rows + block.n_cells
        end = self.nnz + len(block.data)
        indptr = self._matrix["indptr"]
        assert end <= np.iinfo(indptr.dtype).max, "more nonzeros than the index type was chosen for"
        for name, values in (("data", block.data), ("indices", block.indices)):
            self._matrix[name].resize((end,))
            self._matrix[name][self.nnz : end] = values
        indptr[first + 1 : last + 1] = block.indptr[1:] + self.nnz
        self._index[first:last] = list(names)
        for name, column in self._columns.items():
            column[first:last] = block.obs[name]
        self.n_rows, self.nnz = last, end


def _encode(node: Any, kind: str, version: str, **attributes: Any) -> Any:
    node.attrs.update({"encoding-type": kind, "encoding-version": version, **attributes})
    return node


def _array(group: h5py.Group, name: str, length: int, dtype: Any, compression: str | None = None) -> Any:
    return _encode(group.create_dataset(name, (length,), dtype, compression=compression), "array", "0.2.0")


def _strings(group: h5py.Group, name: str, length: int) -> Any:
    import h5py

    return _encode(group.create_dataset(name, (length,), h5py.string_dtype()), "string-array", "0.2.0")


def _write_var(file: h5py.File, genes: Sequence[str], variable: NDArray[np.bool_]) -> None:
    var = _encode(file.create_group("var"), "dataframe", "0.2.0", _index="gene_id")
    var.attrs["column-order"] = ["gene_name", "highly_variable"]
    ids = _numbered("ENSG{:0{}d}", range(1, len(genes) + 1), len(genes), least_width=11)
    _strings(var, "gene_id", len(genes))[:] = ids
    _strings(var, "gene_name", len(genes))[:] = list(genes)
    _array(var, "highly_variable", len(genes), np.bool_)[:] = variable


def _pca(counts: NDArray[np.int64], n_components: int) -> NDArray[np.float32]:
    """Principal components of log1p counts per 10,000, (cell, component)."""
    logged: NDArray[np.float64] = np.log1p(counts * (1e4 / counts.sum(axis=1, keepdims=True)))
    centred = logged - logged.mean(axis=0)
    # The eigenvectors of the small (gene, gene) product are the SVD's right vectors, smallest first.
    _, axes = np.linalg.eigh(centred.T @ centred)
    scores: NDArray[np.float32] = (centred @ axes[:, : -n_components - 1 : -1]).astype(np.float32)
    return scores
