"""Null screens: strong batch effects, and no effect of any perturbation."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lazypert._internal.config import Config
from lazypert._internal.paths import local_path
from lazypert._internal.randomness import generator
from lazypert._internal.validation import require, require_integer, require_number
from lazypert.errors import ConfigError
from lazypert.simulate.constants import CELL_TYPES, numbered_names
from lazypert.simulate.h5ad import WRITES_LOCALLY, Block, ScreenWriter, open_atomic, write_var

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

BLOCK_CELLS = 1024  # cells that share a stream of random numbers, and are in memory at once

# Streams of random numbers; the other modules of this package use 0 and 1.
_DESIGN, _COUNTS = 10, 11

_GENE_LOG_MEAN, _GENE_LOG_SD = 1.5, 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class NullScreenConfig(Config):
    """Options of `null_screen`.

    Parameters
    ----------
    group_sizes : tuple of int
        Number of cells of each perturbation.
    n_controls : int
        Number of control cells.
    n_batches : int
        Number of batches, which are equally likely for every cell, whatever its perturbation.
    n_genes : int
        Number of genes.
    batch_log_sd : float
        Standard deviation of the batch effect on a gene's mean, in units of the natural logarithm. By default, the
        means of two batches differ by a factor of 1.8 typically, which is far more than most perturbations do.
    control_pert : str
        Label of the control cells.
    seed : int
        Seed; together with the options above it determines the screen.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    group_sizes: tuple[int, ...] = (200,) * 20
    n_controls: int = 2_000
    n_batches: int = 8
    n_genes: int = 40
    batch_log_sd: float = 0.6
    control_pert: str = "non-targeting"
    seed: int = 0

    def __post_init__(self) -> None:
        sizes: object = self.group_sizes
        is_tuple = isinstance(sizes, tuple) and len(sizes) > 0
        require(is_tuple, "group_sizes", self.group_sizes, "a tuple of numbers of cells, one per perturbation")
        for size in self.group_sizes:
            require_integer("group_sizes", size, 1)
        for name, least in (("n_controls", 1), ("n_batches", 1), ("n_genes", 2), ("seed", 0)):
            require_integer(name, getattr(self, name), least)
        require_number("batch_log_sd", self.batch_log_sd, least=0)
        is_label = self.control_pert not in ("", *self.perturbations)
        require(is_label, "control_pert", self.control_pert, "a label that no perturbation has (P1, P2, ...)")

    @property
    def perturbations(self) -> list[str]:
        """Labels of the perturbations, in the order of `group_sizes`."""
        return _numbered("P{:0{}d}", len(self.group_sizes))

    @property
    def n_cells(self) -> int:
        """Number of cells, including controls."""
        return self.n_controls + sum(self.group_sizes)


def null_screen(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    config: NullScreenConfig | None = None,
    *,
    overwrite: bool = False,
) -> list[Path]:
    """Write a screen in which no perturbation has an effect, to check samplers, models and tests against.

    Counts are ``Poisson(exp(gene + effect[batch]))``: they depend on the gene and on the batch, and on nothing else.
    Whatever differs between the cells of a perturbation and their controls is therefore due to how they were sampled.
    Cells are in the order in which unfair sampling does most harm: sorted by perturbation and batch.

    obs has the categorical columns ``perturbation``, ``cell_type`` (one) and ``batch``; var has ``gene_name`` and
    ``highly_variable`` (all false). X is CSR with float32 counts.

    Parameters
    ----------
    paths
        The ``.h5ad`` file to write, or several: each cell is then in one of them at random, and all of them
        together are the same screen.
    config
        What to simulate; the default is ``NullScreenConfig()``.
    overwrite
        Whether to replace existing files.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    ConfigError
        If `paths` is empty or names a file twice.
    StoreExistsError
        If a file exists and `overwrite` is false.
    StoreNotFoundError
        If a directory does not exist.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     [path] = null_screen(f"{folder}/null.h5ad", NullScreenConfig(group_sizes=(50, 70), n_controls=100))
    >>> path.name
    'null.h5ad'
    """
    config = NullScreenConfig() if config is None else config
    files = [
        local_path("paths", path, WRITES_LOCALLY)
        for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)
    ]
    if not files or len(set(files)) < len(files):
        raise ConfigError(f"paths: got {paths!r}, expected one or more different files.")
    design = generator(config.seed, _DESIGN)
    label = np.repeat(np.arange(1 + len(config.group_sizes)), [config.n_controls, *config.group_sizes])
    batch = design.integers(config.n_batches, size=config.n_cells)
    gene = design.normal(_GENE_LOG_MEAN, _GENE_LOG_SD, config.n_genes)
    means = np.exp(gene + design.normal(0, config.batch_log_sd, (config.n_batches, config.n_genes)))
    # Drawn last, so that the cells are the same ones however many files there are.
    file_of = design.integers(len(files), size=config.n_cells)
    order = np.lexsort((batch, label))
    label, batch, file_of = label[order], batch[order], file_of[order]
    categories = {
        "perturbation": [config.control_pert, *config.perturbations],
        "cell_type": CELL_TYPES[:1],
        "batch": _numbered("batch{:0{}d}", config.n_batches),
    }
    # SciPy requires indptr and indices of one type.
    index_type = np.int32 if config.n_cells * config.n_genes < np.iinfo(np.int32).max else np.int64
    with ExitStack() as stack:
        writers = []
        for number, path in enumerate(files):
            file = stack.enter_context(open_atomic(path, overwrite=overwrite))
            shape = (int((file_of == number).sum()), config.n_genes)
            writers.append(ScreenWriter(file, shape, categories, index_type=index_type))
            write_var(file, _numbered("Gene_{:0{}d}", config.n_genes), np.zeros(config.n_genes, dtype=bool))
        for start in range(0, config.n_cells, BLOCK_CELLS):
            rows = np.arange(start, min(start + BLOCK_CELLS, config.n_cells))
            counts = generator(config.seed, _COUNTS, start // BLOCK_CELLS).poisson(means[batch[rows]])
            for number, writer in enumerate(writers):
                mine = file_of[rows] == number
                names = numbered_names("CELL{:0{}d}-1", rows[mine].tolist(), config.n_cells, min_width=6)
                writer.append(_block(counts[mine], label[rows[mine]], batch[rows[mine]]), names)
    return files


def _numbered(template: str, n: int) -> list[str]:
    return numbered_names(template, range(1, n + 1), n + 1, min_width=1)


def _block(counts: NDArray[np.int64], label: NDArray[np.int64], batch: NDArray[np.int64]) -> Block:
    rows, columns = np.nonzero(counts)
    return Block(
        indptr=np.searchsorted(rows, np.arange(len(counts) + 1)),
        indices=columns.astype(np.int32),
        data=counts[rows, columns].astype(np.float32),
        obs={"perturbation": label, "cell_type": np.zeros_like(label), "batch": batch},
    )
