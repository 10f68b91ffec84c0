"""Several screens as one: under one vocabulary, with their genes aligned."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.validation import require
from lazypert.errors import ConfigError
from lazypert.screen.genes import align_genes
from lazypert.screen.groups import Groups
from lazypert.sources.base import PerturbationSource
from lazypert.sparse.columns import ColumnTable
from lazypert.sparse.csr import CSRBlock, canonical
from lazypert.sparse.row_view import PlacedRows, one_after_another

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from lazypert.sources.anndata_source import PerturbationAnnDataSource
    from lazypert.sources.matrix_part import MatrixPart
    from lazypert.sparse.row_view import Place
    from lazypert.store.matrix import Matrix
    from lazypert.store.store import Store


class PerturbationConcatSource(PerturbationSource):
    """Several screens, one after another, under one vocabulary.

    Labels are united, genes aligned by name in the var index, and each screen counts as a dataset
    of its own, so that controls are matched within it.

    Parameters
    ----------
    sources
        Screens with the same roles and output space.
    join
        ``"inner"`` keeps the genes that all screens measured; ``"outer"`` all, zero where a screen
        lacks them.
    names
        Dataset names; the file stems by default.
    """

    def __init__(
        self, sources: Sequence[PerturbationAnnDataSource], *, join: str = "inner", names: Sequence[str] | None = None
    ) -> None:
        if not sources:
            raise ConfigError("sources: got an empty list, expected at least one source.")
        for name in ("control_pert", "output_space", "layer", "embedding_key", "hvg_col", "additional_obs"):
            given = [getattr(source.config, name) for source in sources]
            require(all(value == given[0] for value in given), f"sources differ in {name}", given, "the same in all")
        self.sources = tuple(sources)
        self.config = sources[0].config
        self.names = tuple(names) if names is not None else _unique_names(sources)
        different = len(self.names) == len(set(self.names)) == len(sources)
        require(different, "names", self.names, f"{len(sources)} different names, one a source")
        self._offsets = np.cumsum([0, *(source.n_rows for source in sources)])
        self._genes = align_genes([source.var for source in sources], self.names, join)

    def __repr__(self) -> str:
        return f"PerturbationConcatSource({', '.join(self.names)}: {self.n_rows:,} cells x {len(self.var):,} genes)"

    @cached_property
    def groups(self) -> Groups:
        """Cells of all screens, grouped."""
        named = [_named_dataset(source.groups, name) for source, name in zip(self.sources, self.names, strict=True)]
        return Groups.concat(named, [source.n_rows for source in self.sources])

    @property
    def n_rows(self) -> int:
        """Number of cells of all screens, controls included."""
        return int(self._offsets[-1])

    @property
    def var(self) -> pd.DataFrame:
        """The var table of the shared genes."""
        return self._genes.var

    def parts(self, layer: str | None) -> list[MatrixPart]:
        """Return the matrix of each store."""
        return [
            replace(source.parts(layer)[0], first_row=int(offset), column_of=columns)
            for source, offset, columns in zip(self.sources, self._offsets, self._genes.column_of, strict=False)
        ]

    def _scatter(self, rows: NDArray[np.integer]) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """For each screen: its number, which of the asked rows are its, and their rows in it."""
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= self.n_rows):
            raise IndexError(f"Rows {rows.min()} to {rows.max()} are not all in a screen of {self.n_rows:,} cells.")
        which = np.searchsorted(self._offsets, rows, side="right") - 1
        for number in range(len(self.sources)):
            at = np.flatnonzero(which == number)
            yield number, at, rows[at] - self._offsets[number]

    def _concerned(self, rows: NDArray[np.integer]) -> list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """What `_scatter` says of the screens that have some of the rows; of the first, where there are none."""
        parts = list(self._scatter(rows))
        return [part for part in parts if len(part[1])] or parts[:1]

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """Matrix of each store."""
        return tuple(source.matrix for source in self.sources)

    @property
    def stores(self) -> tuple[Store, ...]:
        """The stores, in the order of their rows."""
        return tuple(source.store for source in self.sources)

    def _matrix(self, number: int) -> Matrix:
        return self.sources[number].matrix

    def read_counts(self, rows: NDArray[np.integer]) -> CSRBlock:
        """Rows of the matrices, in the order asked, over the shared genes."""
        placed = self.read_placed(rows)
        indptr = np.concatenate([[0], np.cumsum(placed.lengths)]).astype(np.int64)
        indices = placed.indices.astype(np.int32, copy=False)
        block = canonical(CSRBlock(indptr, indices, placed.data, len(self.var)))  # genes may have another order
        return replace(block, data=block.data.astype(self.value_dtype, copy=False))

    def read_placed(
        self,
        rows: NDArray[np.integer],
        *,
        place: Place = one_after_another,
        empty: Callable[[int, Any], NDArray[Any]] = np.empty,
    ) -> PlacedRows:
        """Rows of the matrices at the places asked for, over the shared genes; see `Matrix.read_placed`."""
        if self._genes.is_same and self._is_one_kind:
            return self._read_in_place(rows, place, empty)
        parts = [
            (at, self._matrix(number).read_selected(local, self._table(number, self._every_gene)))
            for number, at, local in self._concerned(rows)
        ]
        return PlacedRows.joined(parts, self.value_dtype, place, empty)

    @cached_property
    def _every_gene(self) -> ColumnTable:
        return ColumnTable.of(np.arange(len(self.var)), len(self.var))

    def _table(self, number: int, columns: ColumnTable) -> ColumnTable:
        """Columns of the shared genes as those of a screen."""
        return columns if self._genes.is_same else columns.through(self._genes.new_col[number])

    def _has_more_genes(self, number: int) -> bool:
        """Whether totals over a screen's own genes would be over more than the shared ones."""
        return bool((self._genes.new_col[number] < 0).any())

    @cached_property
    def _is_one_kind(self) -> bool:
        """Whether values of all stores can be decoded into one array."""
        kinds = {matrix.dtype for matrix in self.matrices}
        return len(kinds) == 1 or all(kind.kind == "u" for kind in kinds)

    def _read_in_place(
        self, rows: NDArray[np.integer], place: Place, empty: Callable[[int, Any], NDArray[Any]]
    ) -> PlacedRows:
        located = [(number, at, self._matrix(number).locate(local)) for number, at, local in self._concerned(rows)]
        lengths = np.empty(len(rows), np.int64)
        for _, at, found in located:
            lengths[at] = found.lengths
        starts, size = place(lengths)
        indices = empty(size, np.dtype(np.uint16 if len(self.var) <= 2**16 else np.int32))
        data = empty(size, self.value_dtype)
        for number, at, found in located:
            self._matrix(number).gather(found, starts[at], indices, data)
        return PlacedRows(starts, lengths, indices, data, len(self.var))

    def read_selected(self, rows: NDArray[np.integer], columns: ColumnTable, *, totals: bool = False) -> PlacedRows:
        """Wanted columns of rows, with `totals` also sums over the shared genes; see `Matrix.read_selected`."""
        parts = [
            (at, self._selected(number, local, columns, totals=totals)) for number, at, local in self._concerned(rows)
        ]
        return PlacedRows.joined(parts, self.value_dtype, one_after_another, np.empty)

    def _selected(self, number: int, rows: NDArray[np.int64], columns: ColumnTable, *, totals: bool) -> PlacedRows:
        if totals and self._has_more_genes(number):
            shared = self._matrix(number).read_selected(rows, self._table(number, self._every_gene))
            return shared.select(columns, totals=True)
        return self._matrix(number).read_selected(rows, self._table(number, columns), totals=totals)

    def read_dense(
        self,
        rows: NDArray[np.integer],
        columns: ColumnTable,
        *,
        target_sum: float | None = None,
        empty: Callable[[tuple[int, int], Any], NDArray[Any]] = np.empty,
    ) -> NDArray[np.float32]:
        """(n, n_columns) float32 wanted columns of rows; see `Matrix.read_dense`."""
        out = empty((len(rows), columns.n_columns), np.float32)
        for number, at, local in self._concerned(rows):
            if target_sum is not None and self._has_more_genes(number):
                self._selected(number, local, columns, totals=True).fill(out, at, target_sum)
            else:
                self._matrix(number).fill_dense(local, self._table(number, columns), target_sum, out, at)
        return out

    def _gather(self, parts: list[NDArray[Any]], rows: NDArray[np.integer]) -> NDArray[Any]:
        places = np.concatenate([at for _, at, _ in self._scatter(rows)])
        joined: NDArray[Any] = np.concatenate(parts)[np.argsort(places)]
        return joined

    def read_embedding(self, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        """(n, width) rows of the embedding, float32."""
        return self._gather([self.sources[n].read_embedding(local) for n, _, local in self._scatter(rows)], rows)

    def read_obs(self, column: str, rows: NDArray[np.integer]) -> NDArray[Any]:
        """(n,) values of an obs column."""
        return self._gather([self.sources[n].read_obs(column, local) for n, _, local in self._scatter(rows)], rows)

    def obs_names(self, rows: NDArray[np.integer]) -> NDArray[Any]:
        """(n,) cell names, as in the screens; not unique when screens share names."""
        return self._gather([self.sources[n].obs_names(local) for n, _, local in self._scatter(rows)], rows)


def _named_dataset(groups: Groups, name: str) -> Groups:
    labels = groups.labels["dataset"]
    named = [name] if len(labels) == 1 else [f"{name}/{label}" for label in labels]
    return replace(groups, labels={**groups.labels, "dataset": np.array(named, dtype=np.str_)})


def _unique_names(sources: Sequence[PerturbationAnnDataSource]) -> tuple[str, ...]:
    names: list[str] = []
    for source in sources:
        stem = Path(str(source.config.file_path)).name.split(".")[0]
        names.append(stem if stem not in names else f"{stem}_{len(names) + 1}")
    return tuple(names)
