"""The small reference screen, and realistic screens of any size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lazypert._internal.memory import cpu_count
from lazypert._internal.paths import local_path
from lazypert._internal.randomness import generator
from lazypert._internal.validation import require_integer
from lazypert.simulate.config import SimulationTruth
from lazypert.simulate.constants import CELL_TYPES, numbered_names
from lazypert.simulate.h5ad import WRITES_LOCALLY, Block, ScreenWriter, encode, open_atomic, write_var
from lazypert.simulate.model import build_model, expected_nnz
from lazypert.simulate.sampling import sample_blocks

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from numpy.typing import NDArray

    from lazypert.simulate.config import SimulationConfig

_TARGETS = ("BRCA1", "TP53", "KRAS", "MYC", "EGFR")


def reference_screen(path: str | os.PathLike[str], *, seed: int = 0, overwrite: bool = False) -> Path:
    """Write the reference screen: 3 cell types x 6 perturbations x 50 cells, 200 genes.

    Counts are Poisson(5); those of a target gene are thinned to a tenth in its perturbed cells. Batches
    alternate by cell name, and the order of the cells is shuffled. ``obsm["X_pca"]`` is a PCA
    (20 components) of ``log1p`` counts per 10,000; ``var["highly_variable"]`` marks 50 genes.

    Parameters
    ----------
    path
        The ``.h5ad`` file to write.
    seed
        Determines the counts and the order of the cells.
    overwrite
        Whether to replace an existing file.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    StoreExistsError
        If `path` exists and `overwrite` is false.
    StoreNotFoundError
        If the directory of `path` does not exist.
    """
    path = local_path("path", path, WRITES_LOCALLY)
    require_integer("seed", seed, 0)
    rng = generator(seed, 0)
    perturbations = sorted(("non-targeting", *_TARGETS))
    shape = (len(CELL_TYPES), len(perturbations), 50)
    types, perts, cells = (axis.ravel() for axis in np.indices(shape))
    genes = [*_TARGETS, *numbered_names("Gene_{:0{}d}", range(len(_TARGETS), 200), 200, min_width=4)]
    counts = rng.poisson(5.0, (cells.size, len(genes)))
    for gene, target in enumerate(_TARGETS):
        is_perturbed = perts == perturbations.index(target)
        counts[is_perturbed, gene] = rng.binomial(counts[is_perturbed, gene], 0.1)
    cell_order = rng.permutation(cells.size)
    counts = counts[cell_order]
    highly_variable = np.zeros(len(genes), dtype=bool)
    highly_variable[np.argsort(-counts.var(axis=0), kind="stable")[:50]] = True
    rows, columns = np.nonzero(counts)
    block = Block(
        indptr=np.searchsorted(rows, np.arange(cells.size + 1)),
        indices=columns.astype(np.int32),
        data=counts[rows, columns].astype(np.float32),
        obs={
            "perturbation": perts[cell_order],
            "cell_type": types[cell_order],
            "batch": cell_order % 2,
        },
    )
    categories = {"perturbation": perturbations, "cell_type": CELL_TYPES, "batch": ["batch1", "batch2"]}
    with open_atomic(path, overwrite=overwrite) as file:
        writer = ScreenWriter(file, counts.shape, categories)
        writer.append(block, numbered_names("CELL{:0{}d}-1", cell_order, len(cell_order), min_width=6))
        write_var(file, genes, highly_variable)
        encode(file["obsm"].create_dataset("X_pca", data=_pca(counts, 20)), "array", "0.2.0")
    return path


def simulate_screen(
    path: str | os.PathLike[str],
    config: SimulationConfig,
    *,
    threads: int | None = None,
    overwrite: bool = False,
) -> SimulationTruth:
    """Write a realistic screen as H5AD, with memory use that does not depend on its size.

    obs has the categorical columns ``perturbation``, ``guide``, ``cell_type`` and ``batch`` and the integer
    column ``n_umis``; var has ``gene_name`` and ``highly_variable``. X is CSR: float32 counts, int32
    indices, and an int32 indptr, or int64 for more than about 1.7e9 nonzeros.

    Parameters
    ----------
    path
        The ``.h5ad`` file to write. It appears once it is complete.
    config
        What to simulate.
    threads
        Number of threads, which does not affect the result. Default: one per processor.
    overwrite
        Whether to replace an existing file.

    Returns
    -------
    SimulationTruth
        What an analysis of the screen should find.

    Raises
    ------
    StoreExistsError
        If `path` exists and `overwrite` is false.
    StoreNotFoundError
        If the directory of `path` does not exist.
    ConfigError
        If `threads` is not positive, or `control_pert` is the name of a gene.

    Examples
    --------
    >>> import tempfile
    >>> from lazypert.simulate import SimulationConfig
    >>> config = SimulationConfig(n_cells=256, n_genes=300, n_perturbations=4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     truth = simulate_screen(f"{folder}/screen.h5ad", config)
    >>> int(truth.group_cells.sum()), truth.group_cells.shape
    (256, (3, 6))
    """
    path = local_path("path", path, WRITES_LOCALLY)
    threads = cpu_count() if threads is None else threads
    require_integer("threads", threads, 1)
    model = build_model(config)
    design = model.design
    types = sorted(config.cell_types)
    categories = {
        "perturbation": design.labels,
        "guide": design.guides,
        "cell_type": types,
        "batch": [f"batch{batch + 1}" for batch in range(config.n_batches)],
    }
    # The index type is chosen before the first row, so the expected size gets a margin of a quarter.
    expected = 1.25 * config.n_cells * expected_nnz(config)
    group_cells = np.zeros((len(types), len(design.labels)), dtype=np.int64)
    n_umis = 0
    with open_atomic(path, overwrite=overwrite) as file:
        writer = ScreenWriter(
            file,
            (config.n_cells, config.n_genes),
            categories,
            numbers=("n_umis",),
            index_type=np.int32 if expected < np.iinfo(np.int32).max else np.int64,
            compression=config.compression,
        )
        for block in sample_blocks(model, config, threads):
            rows = range(writer.n_rows, writer.n_rows + block.n_cells)
            writer.append(block, numbered_names("CELL{:0{}d}-1", rows, config.n_cells, min_width=6))
            np.add.at(group_cells, (block.obs["cell_type"], block.obs["perturbation"]), 1)
            n_umis += int(block.obs["n_umis"].sum(dtype=np.int64))
        write_var(file, model.gene_names, model.highly_variable)
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


def _pca(counts: NDArray[np.int64], n_components: int) -> NDArray[np.float32]:
    """Return the principal components of log1p counts per 10,000, (cell, component)."""
    logged: NDArray[np.float64] = np.log1p(counts * (1e4 / counts.sum(axis=1, keepdims=True)))
    centred = logged - logged.mean(axis=0)
    # The eigenvectors of the (gene, gene) matrix are the right singular vectors, in ascending order.
    _, axes = np.linalg.eigh(centred.T @ centred)
    scores: NDArray[np.float32] = (centred @ axes[:, : -n_components - 1 : -1]).astype(np.float32)
    return scores
