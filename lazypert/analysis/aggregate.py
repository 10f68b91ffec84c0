"""Sums, means, variances and detection rates of genes per group of cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from lazypert._internal.validation import require, require_choice, require_names
from lazypert.analysis.cell_labels import STATS, cell_labels
from lazypert.analysis.moments import Summation, reduce_blocks
from lazypert.errors import ConfigError, LabelNotFoundError, near_matches
from lazypert.sparse.columns import ColumnSelection
from lazypert.store.visibility import check_stores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.store.matrix import Matrix
    from lazypert.store.store import Store
    from lazypert.store.sum_kernels import Values

OF: dict[str, Values] = {"stored": "stored", "counts": "stored", "cp10k": "scaled", "log1p": "log1p"}
"""Values that can be aggregated."""


def aggregate(
    store: Store,
    groups: Groups,
    *,
    by: str | Sequence[str],
    stats: str | Sequence[str],
    of: str,
    layer: str | None,
    genes: str | Sequence[str] | None,
) -> xr.Dataset:
    """Aggregate the cells of some groups; see `PertAccessor.aggregate`."""
    by, stats = _names("by", by), _names("stats", stats)
    require(len(stats) > 0, "stats", stats, "at least one statistic")
    for stat in stats:
        require_choice("stats", stat, STATS)
    matrix = store.matrix(layer)
    values = _values(of, matrix)
    check_stores([matrix.data.reader])
    gene_names = np.asarray(store.matrix_var(layer).index.astype(str), dtype=object)
    columns = np.arange(matrix.shape[1]) if genes is None else _columns(genes, gene_names)
    labels = cell_labels(store, groups, by)
    n_moments = 3 if "var" in stats else 2 if {"n_nonzero", "fraction"} & set(stats) else 1
    selection = ColumnSelection.from_indices(columns, matrix.shape[1])
    summation = Summation.of(matrix, selection, labels, values, n_moments)
    per_gene = tuple(stat for stat in stats if stat != "n")
    arrays, n_cells = reduce_blocks(summation, _Finish(per_gene), tuple(map(_dtype, per_gene)))
    dims = (*(axis.name for axis in labels.axes), "gene")
    variables: dict[str, Any] = {}
    for stat in stats:
        variables[stat] = (dims[:-1], n_cells) if stat == "n" else (dims, arrays[per_gene.index(stat)])
    coords = {axis.name: np.asarray(axis.labels, dtype=object) for axis in labels.axes}
    described = {"of": of} if layer is None else {"of": of, "layer": layer}
    return xr.Dataset(variables, {**coords, "gene": gene_names[columns]}, described)


class _Finish:
    """Makes statistics of sums."""

    def __init__(self, stats: tuple[str, ...]) -> None:
        self.stats = stats

    def __call__(self, sums: NDArray[np.float64], n_cells: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        return tuple(_statistic(stat, sums, n_cells.astype(np.float64)[:, None]) for stat in self.stats)


def _dtype(stat: str) -> Any:
    return np.int64 if stat == "n_nonzero" else np.float64


def _statistic(stat: str, sums: NDArray[np.float64], n: NDArray[np.float64]) -> NDArray[Any]:
    """(n_groups, n_genes) statistic; NaN where too few cells define it."""
    if stat == "sum":
        return np.ascontiguousarray(sums[..., 0])
    if stat == "n_nonzero":
        return sums[..., 1].astype(np.int64)
    with np.errstate(invalid="ignore", divide="ignore"):
        if stat == "mean":
            return sums[..., 0] / n
        if stat == "fraction":
            return sums[..., 1] / n
        spread = np.maximum(sums[..., 2] - sums[..., 0] ** 2 / n, 0)
        return np.where(n > 1, spread / (n - 1), np.nan)


def _names(option: str, names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(require_names(option, names)) if len(names) else ()


def _values(of: str, matrix: Matrix) -> Values:
    require_choice("of", of, tuple(OF))
    if of != "stored" and not matrix.is_counts:
        raise ConfigError(
            f"of: got {of!r}, but {matrix.name} holds values that are not counts (minimum {matrix.stats['minimum']:g}"
            f"{'' if matrix.stats['integral'] else ', with fractions'}). Pass of='stored' to aggregate them as they "
            "are, or layer=... to name a layer of counts."
        )
    return OF[of]


def _columns(genes: str | Sequence[str], known: NDArray[Any]) -> NDArray[np.int64]:
    wanted = _names("genes", genes)
    columns: dict[str, list[int]] = {}
    for column, name in enumerate(known.tolist()):
        columns.setdefault(name, []).append(column)
    for name in wanted:
        if name not in columns:
            raise LabelNotFoundError(f"genes: got {name!r}, expected a gene of the matrix. {near_matches(name, known)}")
        if len(columns[name]) > 1:
            raise ConfigError(f"genes: got {name!r}, which is the name of {len(columns[name])} genes.")
    if len(set(wanted)) < len(wanted):
        raise ConfigError("genes: a gene is named twice. Name each gene once.")
    return np.array([columns[name][0] for name in wanted], np.int64)
