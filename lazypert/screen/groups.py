"""Groups of cells, as a table of runs: everything else is arithmetic on these few intervals."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from lazypert._internal.kernels import kernel
from lazypert._internal.randomness import GOLDEN, mix
from lazypert.errors import LabelNotFoundError, near_matches
from lazypert.screen.labels import renumber
from lazypert.screen.roles import AXES
from lazypert.screen.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lazypert.screen.roles import Roles

ALL = "all"
"""Label of every cell on an axis that has no column."""


@dataclass(frozen=True, eq=False)
class Groups:
    """The cells of a screen, grouped by (cell_type, perturbation, dataset, batch).

    Attributes
    ----------
    roles
        Columns that cells are grouped by, and the control label.
    labels
        For each of `AXES`, its (n_labels,) sorted labels.
    start, stop
        (n_runs,) int64 positions of each run. Runs cover all cells without overlap, sorted by their
        labels, with missing labels last.
    codes
        For each of `AXES`, (n_runs,) int32 codes, -1 for a missing label.
    row_order
        (n_obs,) store row of each position, or None if positions are rows.
    n_obs
        Number of cells.
    is_shuffled
        Whether cells are in random order inside their runs, so that any interval of a run is a random
        sample of it.
    """

    roles: Roles
    labels: dict[str, NDArray[np.str_]]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    codes: dict[str, NDArray[np.int32]]
    row_order: NDArray[np.integer] | None
    n_obs: int
    is_shuffled: bool = False

    @classmethod
    def from_codes(
        cls,
        codes: Sequence[Any],
        labels: Sequence[NDArray[np.str_]],
        roles: Roles,
        n_obs: int,
        *,
        rows: Any = None,
    ) -> Groups:
        """Group cells by their codes.

        Parameters
        ----------
        codes
            For each of `AXES`: (n_obs,) integers, NumPy or Dask, -1 for a missing label; or None if the
            screen has no such column. Dask arrays are reduced chunk by chunk.
        labels
            For each of `AXES`: its labels (ignored if codes are None).
        rows
            (n_obs,) store row of each cell, if these are not all the cells of a store.
        """
        names = [np.asarray([ALL] if c is None else lab, dtype=np.str_) for c, lab in zip(codes, labels, strict=True)]
        key, length = _runs_of(codes, [len(n) for n in names], n_obs)
        begin = np.cumsum(length) - length
        by_key = np.argsort(key, kind="stable")
        key, begin, length = key[by_key], begin[by_key], length[by_key]
        row_order: NDArray[np.integer] | None = None
        if (np.diff(begin) < 0).any():  # the cells of a run are not contiguous
            dtype = np.dtype("i4" if n_obs < 2**31 else "i8")
            shift = (begin - (np.cumsum(length) - length)).astype(dtype)
            row_order = np.repeat(shift, length) + np.arange(n_obs, dtype=dtype)
        if rows is not None:
            rows = np.asarray(rows)
            row_order = rows if row_order is None else rows[row_order]
        first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])[: len(key)])
        stop = np.cumsum(length)[np.concatenate([first[1:], [len(key)]])[: len(first)] - 1]
        start = np.concatenate([[0], stop[:-1]])[: len(stop)].astype(np.int64)
        run_codes = _decode(key[first], [len(n) for n in names])
        return cls(
            roles=roles,
            labels=dict(zip(AXES, names, strict=True)),
            start=start,
            stop=stop.astype(np.int64),
            codes=dict(zip(AXES, run_codes, strict=True)),
            row_order=row_order,
            n_obs=n_obs,
        )

    @classmethod
    def concat(cls, screens: Sequence[Groups], n_rows: Sequence[int]) -> Groups:
        """Concatenate screens under the union of their labels; codes are renumbered.

        Parameters
        ----------
        screens
            Groups of each screen.
        n_rows
            Number of rows of each screen's store; its rows follow those of the stores before it.
        """
        labels = {axis: np.unique(np.concatenate([screen.labels[axis] for screen in screens])) for axis in AXES}
        codes = {
            axis: np.concatenate([renumber(s.codes[axis], s.labels[axis], labels[axis]) for s in screens])
            for axis in AXES
        }
        cells_before = np.cumsum([0, *(screen.n_obs for screen in screens)])[:-1]
        starts = np.concatenate([s.start + before for s, before in zip(screens, cells_before, strict=True)])
        stops = np.concatenate([s.stop + before for s, before in zip(screens, cells_before, strict=True)])
        row_order = None
        if any(screen.row_order is not None for screen in screens):
            rows_before = np.cumsum([0, *n_rows])[:-1]
            row_order = np.concatenate(
                [
                    (np.arange(screen.n_obs) if screen.row_order is None else screen.row_order) + before
                    for screen, before in zip(screens, rows_before, strict=True)
                ]
            )
        sizes = [len(labels[axis]) for axis in AXES]
        by_key = np.argsort(_encode([codes[axis] for axis in AXES], sizes), kind="stable")
        return cls(
            roles=screens[0].roles,
            labels=labels,
            start=starts[by_key],
            stop=stops[by_key],
            codes={axis: code[by_key] for axis, code in codes.items()},
            row_order=row_order,
            n_obs=int(sum(screen.n_obs for screen in screens)),
            is_shuffled=all(screen.is_shuffled for screen in screens),
        )

    def __len__(self) -> int:
        return len(np.unique(self.ids[self.ids >= 0]))

    def __repr__(self) -> str:
        plurals = {
            "cell_type": "cell types",
            "perturbation": "perturbations",
            "dataset": "datasets",
            "batch": "batches",
        }
        counts = {axis: len(labels) for axis, labels in self.labels.items()}
        listed = ", ".join(f"{n:,} {axis.replace('_', ' ') if n == 1 else plurals[axis]}" for axis, n in counts.items())
        return f"Groups({self.n_obs:,} cells in {len(self):,} groups and {len(self.start):,} runs: {listed})"

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """(n_runs,) group id ``cell_type * n_perturbations + perturbation``; -1 if either label is missing."""
        cell_type, pert = self.codes["cell_type"], self.codes["perturbation"]
        ids = cell_type.astype(np.int64) * len(self.labels["perturbation"]) + pert
        return np.where((cell_type < 0) | (pert < 0), -1, ids)

    @cached_property
    def batch_ids(self) -> NDArray[np.int64]:
        """(n_runs,) id of the (cell_type, perturbation, dataset, batch) group; -1 where `ids` is.

        Cells without a batch label form their own group.
        """
        keys = _encode([self.codes[axis] for axis in AXES], [len(self.labels[axis]) for axis in AXES])
        return np.where(self.ids < 0, -1, keys)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(n_runs,) number of cells in each run."""
        return self.stop - self.start

    @cached_property
    def control_code(self) -> int:
        """Code of the control label, or -1 if the roles name none."""
        if self.roles.control_pert is None:
            return -1
        return self.code_of("perturbation", self.roles.control_pert)

    @cached_property
    def is_control(self) -> NDArray[np.bool_]:
        """(n_runs,) whether a run's cells are controls."""
        code = self.control_code
        return self.codes["perturbation"] == code if code >= 0 else np.zeros(len(self.start), dtype=bool)

    @property
    def n_unlabelled(self) -> int:
        """Number of cells without a cell type or a perturbation: they are in no group, split or pool."""
        return int(self.sizes[self.ids < 0].sum())

    def code_of(self, axis: str, label: str) -> int:
        """Return the code of a label.

        Raises
        ------
        LabelNotFoundError
            If it does not occur; near matches are listed.
        """
        codes = np.flatnonzero(self.labels[axis] == label)
        if not len(codes):
            raise LabelNotFoundError(
                f"{axis}: got {label!r}, expected a label in obs column {self.roles.columns()[axis]!r}. "
                f"{near_matches(label, self.labels[axis])}"
            )
        return int(codes[0])

    def rows(self, runs: NDArray[np.bool_] | NDArray[np.integer]) -> Rows:
        """Return the rows of the chosen runs, in run order."""
        return Rows(self.start[runs], self.stop[runs], self.row_order)

    def run_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the run that contains each position."""
        by_start = self._by_start
        run = np.searchsorted(self.start[by_start], positions, side="right") - 1
        return run if isinstance(by_start, slice) else by_start[run]

    @cached_property
    def _by_start(self) -> NDArray[np.int64] | slice:
        """Runs sorted by position; only in concatenated screens are they not in this order already."""
        return slice(None) if (np.diff(self.start) >= 0).all() else np.argsort(self.start, kind="stable")

    def expand(self, per_run: NDArray[Any], n_rows: int | None = None) -> NDArray[Any]:
        """Expand one value per run to one value per row, in row order.

        Parameters
        ----------
        per_run
            (n_runs,) values.
        n_rows
            Rows of the store, if the groups cover only some of them; the other rows get -1 or False.

        Returns
        -------
        (n_rows,) values.
        """
        by_start = self._by_start
        per_position = np.repeat(per_run[by_start], self.sizes[by_start])
        if self.row_order is None and n_rows in (None, self.n_obs):
            return per_position
        per_row = np.full(n_rows or self.n_obs, False if per_position.dtype == bool else -1, dtype=per_position.dtype)
        per_row[slice(len(per_position)) if self.row_order is None else self.row_order] = per_position
        return per_row

    def table(self) -> pd.DataFrame:
        """Return one row per group: its labels, number of cells and of batches, and whether it holds controls."""
        is_labelled = self.ids >= 0
        frame = pd.DataFrame(
            {
                "cell_type": self.codes["cell_type"][is_labelled],
                "perturbation": self.codes["perturbation"][is_labelled],
                "n_cells": self.sizes[is_labelled],
                "n_batches": 1,
                "is_control": self.is_control[is_labelled],
            }
        )
        grouped = frame.groupby(["cell_type", "perturbation"], sort=True)
        table = grouped.agg(
            n_cells=("n_cells", "sum"), n_batches=("n_batches", "sum"), is_control=("is_control", "any")
        ).reset_index()
        for axis in ("cell_type", "perturbation"):
            table[axis] = self.labels[axis][table[axis].to_numpy(dtype=np.int64)]
        return table

    def shuffled(self, seed: int) -> Groups:
        """Return these groups with cells in random order inside each run."""
        row_order = np.arange(self.n_obs) if self.row_order is None else self.row_order.copy()
        _shuffle_runs(self.start, self.stop, row_order, np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
        return replace(self, row_order=row_order, is_shuffled=True)


class HasGroups(Protocol):
    """Anything with groups: a source, or the accessor of a Dataset."""

    @property
    def groups(self) -> Groups:
        """Groups of its cells."""
        ...


def _encode(codes: Sequence[NDArray[Any] | None], sizes: Sequence[int]) -> NDArray[np.int64]:
    """Mixed-radix key of the codes, in which a missing label sorts last."""
    length = next(len(c) for c in codes if c is not None)
    key = np.zeros(length, dtype=np.int64)
    for code, size in zip(codes, sizes, strict=True):
        key *= size + 1
        if code is not None:
            key += np.where(code < 0, np.int64(size), code)  # a size may not fit into the dtype of the codes
    return key


def _decode(key: NDArray[np.int64], sizes: Sequence[int]) -> list[NDArray[np.int32]]:
    """Codes from mixed-radix keys."""
    codes: list[NDArray[np.int32]] = []
    for size in reversed(sizes):
        key, code = np.divmod(key, size + 1)
        codes.append(np.where(code == size, -1, code).astype(np.int32))
    return codes[::-1]


def _runs_of(codes: Sequence[Any], sizes: Sequence[int], n_obs: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Key and length of each run of equal keys, in row order."""
    columns = [c for c in codes if c is not None]
    if not columns:
        return np.zeros(min(1, n_obs), np.int64), np.full(min(1, n_obs), n_obs, dtype=np.int64)
    if not any(hasattr(c, "dask") for c in columns):
        return _run_lengths(codes, sizes)
    import dask
    import dask.array as da

    chunks = next(c.chunks for c in columns if hasattr(c, "dask"))
    delayed = [None if c is None else da.asarray(c).rechunk(chunks).to_delayed() for c in codes]
    reduce_chunk = dask.delayed(_run_lengths)
    tasks = [reduce_chunk([None if d is None else d[i] for d in delayed], sizes) for i in range(len(chunks[0]))]
    runs = dask.compute(*tasks)
    return np.concatenate([key for key, _ in runs]), np.concatenate([length for _, length in runs])


def _run_lengths(
    codes: Sequence[NDArray[Any] | None], sizes: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    key = _encode(codes, sizes)
    if not len(key):
        return key, key
    first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    return key[first], np.diff(np.append(first, len(key)))


@kernel
def _shuffle_runs(start: Any, stop: Any, row_order: Any, seed: Any) -> None:
    """Fisher-Yates shuffle inside each run, with random numbers from SplitMix64, keyed by position."""
    for run in range(len(start)):
        for i in range(stop[run] - 1, start[run], -1):
            z = mix(np.uint64(i) * GOLDEN + seed)
            j = start[run] + np.int64(z % np.uint64(i - start[run] + 1))
            row_order[i], row_order[j] = row_order[j], row_order[i]
