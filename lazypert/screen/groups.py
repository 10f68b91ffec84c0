"""Groups of cells as a table of runs: everything else is arithmetic on these few intervals."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from lazypert._internal.kernels import kernel
from lazypert._internal.randomness import GOLDEN, mix
from lazypert.errors import LabelNotFoundError, near_matches
from lazypert.screen.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lazypert.screen.roles import Roles
from lazypert.screen.roles import AXES

ALL = "all"


@dataclass(frozen=True, eq=False)
class Groups:
    """The cells of a screen, grouped by (cell_type, perturbation, dataset, batch).

    Attributes
    ----------
    roles
        Columns the grouping was made from, and the control label.
    labels
        For each of `AXES`, its (n_labels,) sorted labels.
    start, stop
        (n_runs,) int64 positions. A run is the cells that share a label on every axis; together
        runs tile the screen, sorted by their labels, cells with a missing label last.
    codes
        For each of `AXES`, (n_runs,) int32 label numbers, -1 for a missing label.
    row_order
        (n_obs,) store row of each position, or None where position and row are the same.
    n_obs
        Number of cells.
    is_shuffled
        Whether cells lie in random order inside their runs, so that any piece of a run is a fair
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
            For each of `AXES`: (n_obs,) integers, NumPy or Dask, -1 for missing; or None for a
            column the screen lacks. Dask arrays are reduced block by block and never held whole.
        labels
            For each of `AXES`: its labels (ignored where codes are None).
        rows
            (n_obs,) store row of each cell, when these are not all the cells of a store.
        """
        names = [np.asarray([ALL] if c is None else lab, dtype=np.str_) for c, lab in zip(codes, labels, strict=True)]
        key, length = _runs_of(codes, [len(n) for n in names], n_obs)
        begin = np.cumsum(length) - length
        by_key = np.argsort(key, kind="stable")
        key, begin, length = key[by_key], begin[by_key], length[by_key]
        order: NDArray[np.integer] | None = None
        if (np.diff(begin) < 0).any():  # cells of a group are scattered: say where they are
            small = np.dtype("i4" if n_obs < 2**31 else "i8")
            shift = (begin - (np.cumsum(length) - length)).astype(small)
            order = np.repeat(shift, length) + np.arange(n_obs, dtype=small)
        if rows is not None:
            rows = np.asarray(rows)
            order = rows if order is None else rows[order]
        first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])[: len(key)])
        stop = np.cumsum(length)[np.concatenate([first[1:], [len(key)]])[: len(first)] - 1]
        start = np.concatenate([[0], stop[:-1]])[: len(stop)].astype(np.int64)
        found = _decode(key[first], [len(n) for n in names])
        return cls(
            roles=roles,
            labels=dict(zip(AXES, names, strict=True)),
            start=start,
            stop=stop.astype(np.int64),
            codes=dict(zip(AXES, found, strict=True)),
            row_order=order,
            n_obs=n_obs,
        )

    @classmethod
    def concat(cls, parts: Sequence[Groups], n_rows: Sequence[int]) -> Groups:
        """Put screens one after another under one vocabulary: labels are united, codes renumbered.

        Parameters
        ----------
        n_rows
            Rows of each part's store; part ``i``'s rows follow those of part ``i - 1``.
        """
        labels = {axis: np.unique(np.concatenate([part.labels[axis] for part in parts])) for axis in AXES}
        rows_before = np.cumsum([0, *n_rows])[:-1]
        before = np.cumsum([0, *(part.n_obs for part in parts)])[:-1]
        codes = {
            axis: np.concatenate([_renumber(p.codes[axis], p.labels[axis], labels[axis]) for p in parts])
            for axis in AXES
        }
        starts = np.concatenate([p.start + o for p, o in zip(parts, before, strict=True)])
        stops = np.concatenate([p.stop + o for p, o in zip(parts, before, strict=True)])
        order = None
        if any(part.row_order is not None for part in parts):
            order = np.concatenate(
                [
                    (np.arange(part.n_obs) if part.row_order is None else part.row_order) + offset
                    for part, offset in zip(parts, rows_before, strict=True)
                ]
            )
        sizes = [len(labels[axis]) for axis in AXES]
        by_key = np.argsort(_encode([codes[axis] for axis in AXES], sizes), kind="stable")
        return cls(
            roles=parts[0].roles,
            labels=labels,
            start=starts[by_key],
            stop=stops[by_key],
            codes={axis: code[by_key] for axis, code in codes.items()},
            row_order=order,
            n_obs=int(sum(part.n_obs for part in parts)),
            is_shuffled=all(part.is_shuffled for part in parts),
        )

    def __len__(self) -> int:
        return len(np.unique(self.ids[self.ids >= 0]))

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """(n_runs,) group number ``cell_type * n_perturbations + perturbation``; -1 where one is missing."""
        cell_type, pert = self.codes["cell_type"], self.codes["perturbation"]
        ids = cell_type.astype(np.int64) * len(self.labels["perturbation"]) + pert
        return np.where((cell_type < 0) | (pert < 0), -1, ids)

    @cached_property
    def batch_ids(self) -> NDArray[np.int64]:
        """(n_runs,) number of the (cell_type, perturbation, dataset, batch) group; -1 where `ids` is.

        Cells of a group that have no batch label are a group of their own.
        """
        keys = _encode([self.codes[axis] for axis in AXES], [len(self.labels[axis]) for axis in AXES])
        return np.where(self.ids < 0, -1, keys)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(n_runs,) cells in each run."""
        return self.stop - self.start

    @cached_property
    def control_code(self) -> int:
        """Number of the control label, or -1 when none was named."""
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
        """Cells without a cell type or a perturbation: in no group, no split and no pool."""
        return int(self.sizes[self.ids < 0].sum())

    def code_of(self, axis: str, label: str) -> int:
        """Return the number of a label.

        Raises
        ------
        LabelNotFoundError
            When it does not occur; near matches are listed.
        """
        found = np.flatnonzero(self.labels[axis] == label)
        if not len(found):
            column = self.roles.columns()[axis]
            raise LabelNotFoundError(
                f"{label!r} is not a {axis} of this screen (obs column {column!r}). "
                f"{near_matches(label, self.labels[axis])}"
            )
        return int(found[0])

    def rows(self, runs: NDArray[np.bool_] | NDArray[np.integer]) -> Rows:
        """Rows of the chosen runs, in run order."""
        return Rows(self.start[runs], self.stop[runs], self.row_order)

    def run_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Run that holds each position."""
        by_start = self._by_start
        found = np.searchsorted(self.start[by_start], positions, side="right") - 1
        return found if isinstance(by_start, slice) else by_start[found]

    @cached_property
    def _by_start(self) -> NDArray[np.int64] | slice:
        """Order of the runs by position: their own order, but in several screens under one vocabulary."""
        return slice(None) if (np.diff(self.start) >= 0).all() else np.argsort(self.start, kind="stable")

    def expand(self, per_run: NDArray[Any], n_rows: int | None = None) -> NDArray[Any]:
        """Spread one value a run to one value a row, in row order.

        Parameters
        ----------
        n_rows
            Rows of the store, when the groups cover only some of them; the others get -1 or False.
        """
        by_start = self._by_start
        flat = np.repeat(per_run[by_start], self.sizes[by_start])
        if self.row_order is None and n_rows in (None, self.n_obs):
            return flat
        out = np.full(n_rows or self.n_obs, False if flat.dtype == bool else -1, dtype=flat.dtype)
        out[slice(len(flat)) if self.row_order is None else self.row_order] = flat
        return out

    def table(self) -> pd.DataFrame:
        """One line a group: its labels, number of cells and of batches, whether it is a control group."""
        ids = self.ids
        keep = ids >= 0
        frame = pd.DataFrame(
            {
                "cell_type": self.codes["cell_type"][keep],
                "perturbation": self.codes["perturbation"][keep],
                "n_cells": self.sizes[keep],
                "n_batches": 1,
                "is_control": self.is_control[keep],
            }
        )
        grouped = frame.groupby(["cell_type", "perturbation"], sort=True)
        out = grouped.agg(n_cells=("n_cells", "sum"), n_batches=("n_batches", "sum"), is_control=("is_control", "any"))
        out = out.reset_index()
        for axis in ("cell_type", "perturbation"):
            out[axis] = self.labels[axis][out[axis].to_numpy(dtype=np.int64)]
        return out

    def shuffled(self, seed: int) -> Groups:
        """Shuffle cells inside each run."""
        order = np.arange(self.n_obs) if self.row_order is None else self.row_order.copy()
        _shuffle_runs(self.start, self.stop, order, np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
        return replace(self, row_order=order, is_shuffled=True)


class HasGroups(Protocol):
    """Anything with groups: a source, or the accessor of a Dataset."""

    @property
    def groups(self) -> Groups:
        """Its cells, grouped."""
        ...


def _renumber(codes: NDArray[np.int32], old: NDArray[np.str_], new: NDArray[np.str_]) -> NDArray[np.int32]:
    # The appended -1 is what code -1 (missing) picks.
    return np.append(np.searchsorted(new, old), -1).astype(np.int32)[codes]


def _encode(codes: Sequence[NDArray[Any] | None], sizes: Sequence[int]) -> NDArray[np.int64]:
    """Mixed-radix key of the codes, in which a missing label sorts after all others."""
    length = next(len(c) for c in codes if c is not None)
    key = np.zeros(length, dtype=np.int64)
    for code, size in zip(codes, sizes, strict=True):
        key *= size + 1
        if code is not None:
            key += np.where(code < 0, np.int64(size), code)  # a size may not fit the codes' own dtype
    return key


def _decode(key: NDArray[np.int64], sizes: Sequence[int]) -> list[NDArray[np.int32]]:
    out: list[NDArray[np.int32]] = []
    for size in reversed(sizes):
        key, code = np.divmod(key, size + 1)
        out.append(np.where(code == size, -1, code).astype(np.int32))
    return out[::-1]


def _runs_of(codes: Sequence[Any], sizes: Sequence[int], n_obs: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Key and length of each run of equal keys, in row order."""
    given = [c for c in codes if c is not None]
    if not given:
        return np.zeros(min(1, n_obs), np.int64), np.full(min(1, n_obs), n_obs, dtype=np.int64)
    if not any(hasattr(c, "dask") for c in given):
        return _run_lengths(codes, sizes)
    import dask
    import dask.array as da

    chunks = next(c.chunks for c in given if hasattr(c, "dask"))
    split = [None if c is None else da.asarray(c).rechunk(chunks).to_delayed() for c in codes]
    reduce_block = dask.delayed(_run_lengths)
    parts = [reduce_block([None if s is None else s[i] for s in split], sizes) for i in range(len(chunks[0]))]
    done = dask.compute(*parts)
    return np.concatenate([key for key, _ in done]), np.concatenate([length for _, length in done])


def _run_lengths(
    codes: Sequence[NDArray[Any] | None], sizes: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    key = _encode(codes, sizes)
    if not len(key):
        return key, key
    first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    return key[first], np.diff(np.append(first, len(key)))


@kernel
def _shuffle_runs(start: Any, stop: Any, order: Any, seed: Any) -> None:
    """Fisher-Yates inside each run; the numbers come from SplitMix64, keyed by position."""
    for run in range(len(start)):
        for i in range(stop[run] - 1, start[run], -1):
            z = mix(np.uint64(i) * GOLDEN + seed)
            j = start[run] + np.int64(z % np.uint64(i - start[run] + 1))
            order[i], order[j] = order[j], order[i]
