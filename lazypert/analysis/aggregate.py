"""Sums, means, variances and detection rates of genes per group of cells."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from lazypert._internal.kernels import kernel
from lazypert._internal.memory import own_pages
from lazypert._internal.validation import require, require_choice, require_names
from lazypert.analysis.cell_labels import cell_labels
from lazypert.analysis.moments import Summation, reduce_blocks
from lazypert.analysis.result_accessor import RESULT
from lazypert.errors import NotCountsError
from lazypert.screen.gene_selection import select_genes
from lazypert.sparse.columns import ColumnSelection
from lazypert.store.visibility import check_stores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.store.matrix import Matrix
    from lazypert.store.store import Store
    from lazypert.store.sum_kernels import Values

STATS = ("n", "sum", "mean", "var", "n_nonzero", "fraction")
"""Statistics that can be asked for."""

OF: dict[str, Values] = {"stored": "stored", "counts": "stored", "cp10k": "scaled", "log1p": "log1p"}
"""Values that can be aggregated."""


def aggregate(
    store: Store,
    groups: Groups,
    *,
    by: Sequence[str],
    stats: str | Sequence[str],
    of: str,
    layer: str | None,
    genes: str | Sequence[str] | None,
) -> xr.Dataset:
    """Aggregate the cells of some groups; see `PertAccessor.aggregate`."""
    stats = require_names("stats", stats)
    require(len(stats) > 0, "stats", stats, "at least one statistic")
    for stat in stats:
        require_choice("stats", stat, STATS)
    matrix = store.matrix(layer)
    values = _values(of, matrix)
    check_stores([matrix.data.reader])
    known = store.matrix_var(layer).index.astype(str)
    if genes is None:
        gene_names, selection = list(known), ColumnSelection.from_indices(np.arange(len(known)), len(known))
    else:
        gene_names = require_names("genes", genes)
        selection = select_genes(gene_names, known)
    labels = cell_labels(store, groups, by, reserved=("gene", *STATS))
    n_moments = 3 if "var" in stats else 2 if {"n_nonzero", "fraction"} & set(stats) else 1
    cell_stats = store.cell_stats if layer is None else None
    totals = None if cell_stats is None else cell_stats.total
    summation = Summation.of(matrix, selection, labels, values, n_moments, totals)
    per_gene = tuple(stat for stat in stats if stat != "n")
    arrays, n_cells = reduce_blocks(summation, partial(_statistics, per_gene), tuple(map(_dtype, per_gene)))
    dims = (*(axis.name for axis in labels.axes), "gene")
    variables: dict[str, Any] = {}
    for stat in stats:
        variables[stat] = (dims[:-1], n_cells) if stat == "n" else (dims, arrays[per_gene.index(stat)])
    coords = {axis.name: np.asarray(axis.labels, dtype=object) for axis in labels.axes}
    described = {RESULT: "aggregate", "of": of} | ({} if layer is None else {"layer": layer})
    return xr.Dataset(variables, {**coords, "gene": np.asarray(gene_names, dtype=object)}, described)


def _statistics(
    stats: tuple[str, ...], sums: NDArray[np.float64], n_cells: NDArray[np.int64]
) -> tuple[NDArray[Any], ...]:
    """(n_groups, n_genes) statistics; NaN where too few cells define them."""
    out = {stat: own_pages(sums.shape[:2], _dtype(stat)) for stat in stats}
    wanted = (out.get(stat, np.empty((0, 0), _dtype(stat))) for stat in STATS if stat != "n")
    _fill(sums, n_cells.astype(np.float64), *wanted)
    return tuple(out.values())


def _dtype(stat: str) -> Any:
    return np.int64 if stat == "n_nonzero" else np.float64


@partial(kernel, error_model="numpy")
def _fill(sums: Any, n: Any, total: Any, mean: Any, var: Any, n_nonzero: Any, fraction: Any) -> None:
    for i in range(len(n)):
        for j in range(total.shape[1]):
            total[i, j] = sums[i, j, 0]
        for j in range(mean.shape[1]):
            mean[i, j] = sums[i, j, 0] / n[i]
        for j in range(var.shape[1]):
            spread = sums[i, j, 2] - sums[i, j, 0] * sums[i, j, 0] / n[i]
            var[i, j] = np.nan if n[i] < 2 else 0.0 if spread < 0 else spread / (n[i] - 1)
        for j in range(n_nonzero.shape[1]):
            n_nonzero[i, j] = sums[i, j, 1]
        for j in range(fraction.shape[1]):
            fraction[i, j] = sums[i, j, 1] / n[i]


def _values(of: str, matrix: Matrix) -> Values:
    require_choice("of", of, tuple(OF))
    if of != "stored" and not matrix.is_counts:
        raise NotCountsError(
            f"of: got {of!r}, but {matrix.name} holds values that are not counts (minimum {matrix.stats['minimum']:g}"
            f"{'' if matrix.stats['integral'] else ', with fractions'}). Pass of='stored' to aggregate them as they "
            "are, or layer=... to name a layer of counts."
        )
    return OF[of]
