"""What groups know of single cells, apart from their order: batch codes, names and name hashes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lazypert.errors import ConfigError
from lazypert.screen.labels import renumber

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray


class CellTable(Protocol):
    """Columns by store row, read when they are first used. Picklable."""

    def batch_codes(self) -> NDArray[np.integer] | None:
        """(n_rows,) code of each cell's batch, -1 for a missing label; None if the screen has no batch column."""
        ...

    def hashes(self, rows: NDArray[np.integer]) -> NDArray[np.uint64]:
        """(n,) name hashes of cells; see `lazypert.screen.cell_order`."""
        ...

    def names(self, rows: NDArray[np.integer]) -> NDArray[Any]:
        """Read (n,) names of cells."""
        ...


@dataclass(frozen=True, eq=False)
class CellArrays:
    """A `CellTable` in memory, except for the names, which `read_names` reads from elsewhere."""

    batch: NDArray[np.integer] | None
    name_hash: NDArray[np.uint64]
    read_names: Callable[[NDArray[np.integer]], NDArray[Any]] | None = None

    def batch_codes(self) -> NDArray[np.integer] | None:
        """(n_rows,) code of each cell's batch."""
        return self.batch

    def hashes(self, rows: NDArray[np.integer]) -> NDArray[np.uint64]:
        """(n,) name hashes of cells."""
        return self.name_hash[rows]

    def names(self, rows: NDArray[np.integer]) -> NDArray[Any]:
        """Read (n,) names of cells."""
        if self.read_names is None:
            raise ConfigError("These groups were made without cell names, so cells can only be told apart by row.")
        return self.read_names(rows)


class ConcatCells:
    """The `CellTable` of several screens, whose rows follow one another.

    Parameters
    ----------
    tables, n_rows
        Each screen's table, and the rows of its store.
    labels
        Each screen's batch labels.
    all_labels
        The union of these labels.
    """

    def __init__(
        self,
        tables: Sequence[CellTable],
        n_rows: Sequence[int],
        labels: Sequence[NDArray[np.str_]],
        all_labels: NDArray[np.str_],
    ) -> None:
        self._tables, self._labels, self._all_labels = tuple(tables), tuple(labels), all_labels
        self._n_rows, self._first_rows = tuple(n_rows), np.cumsum([0, *n_rows])
        self._batch: NDArray[np.integer] | None = None

    def batch_codes(self) -> NDArray[np.integer] | None:
        """(n_rows,) code of each cell's batch, in the union of the labels."""
        if self._batch is None:
            dtype = code_dtype(len(self._all_labels))
            batch = np.empty(int(self._first_rows[-1]), dtype)
            for table, labels, start, n in zip(
                self._tables, self._labels, self._first_rows[:-1], self._n_rows, strict=True
            ):
                codes = table.batch_codes()
                codes = np.zeros(n, np.int8) if codes is None else codes
                batch[start : start + n] = renumber(codes, labels, self._all_labels)
            self._batch = batch
        return self._batch

    def hashes(self, rows: NDArray[np.integer]) -> NDArray[np.uint64]:
        """(n,) name hashes of cells."""
        return self._gather(rows, np.dtype(np.uint64), lambda table, local: table.hashes(local))

    def names(self, rows: NDArray[np.integer]) -> NDArray[Any]:
        """Read (n,) names of cells, which repeat if screens share names."""
        return self._gather(rows, np.dtype(object), lambda table, local: table.names(local))

    def _gather(
        self, rows: NDArray[np.integer], dtype: np.dtype[Any], read: Callable[[CellTable, NDArray[Any]], NDArray[Any]]
    ) -> NDArray[Any]:
        rows = np.asarray(rows)
        out = np.empty(len(rows), dtype)
        screen = np.searchsorted(self._first_rows, rows, side="right") - 1
        for number in np.unique(screen):
            inside = screen == number
            out[inside] = read(self._tables[number], rows[inside] - self._first_rows[number])
        return out


@dataclass(frozen=True, eq=False)
class BatchCounts:
    """Numbers of cells by run and batch: one entry for each *subgroup* that has cells, sorted by both.

    Attributes
    ----------
    run, batch
        (n_subgroups,) run, and code of the batch; -1 for a missing label, which comes first.
    n_cells
        (n_subgroups,) cells.
    """

    run: NDArray[np.int64]
    batch: NDArray[np.int32]
    n_cells: NDArray[np.int64]

    @classmethod
    def none(cls) -> BatchCounts:
        """Make the table of no cells."""
        return cls(np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.int64))

    @classmethod
    def count(cls, run: NDArray[np.integer], batch: NDArray[np.integer], n_batches: int) -> BatchCounts:
        """Count cells from the (n,) run and batch of each."""
        keys, n_cells = np.unique(run.astype(np.int64) * (n_batches + 1) + batch + 1, return_counts=True)
        return cls.from_keys(keys, n_cells, n_batches)

    @classmethod
    def total(cls, parts: Sequence[BatchCounts], n_batches: int) -> BatchCounts:
        """Add up several tables."""
        keys, part_of = np.unique(np.concatenate([part.keys(n_batches) for part in parts]), return_inverse=True)
        n_cells = np.zeros(len(keys), dtype=np.int64)
        np.add.at(n_cells, part_of, np.concatenate([part.n_cells for part in parts]))
        return cls.from_keys(keys, n_cells, n_batches)

    @classmethod
    def from_keys(cls, keys: NDArray[np.int64], n_cells: NDArray[np.integer], n_batches: int) -> BatchCounts:
        """Make a table from sorted keys ``run * (n_batches + 1) + batch + 1``."""
        run, batch = np.divmod(keys, n_batches + 1)
        return cls(run, (batch - 1).astype(np.int32), n_cells.astype(np.int64))

    def keys(self, n_batches: int) -> NDArray[np.int64]:
        """(n_subgroups,) ascending keys ``run * (n_batches + 1) + batch + 1``."""
        return self.run * (n_batches + 1) + self.batch + 1


def code_dtype(n_labels: int) -> np.dtype[Any]:
    """Smallest signed dtype that holds the codes of so many labels and -1."""
    return np.dtype(next(dtype for dtype in ("i1", "i2", "i4") if n_labels <= np.iinfo(dtype).max + 1))
