"""The keys that cells are matched with controls by, such as the donor and the plate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.fork import forkable_lock
from lazypert._internal.validation import require
from lazypert.design.match_options import CELL_TYPE, UNUSABLE
from lazypert.errors import ColumnNotFoundError, ConfigError
from lazypert.screen.groups import ALL
from lazypert.screen.rows import Rows
from lazypert.splits.cell_labels import axis_of, read_column

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.design.match_options import Fallback
    from lazypert.screen.groups import Groups
    from lazypert.splits.cell_source import CellSource


class MatchKeys:
    """Codes of the keys beyond cell type and dataset, read when they are first needed. Thread-safe.

    The labels of covariates are those of the conditions, so that nothing is read for them.

    Parameters
    ----------
    source
        The screen.
    match
        Names of axes and obs columns, the most important one first; ``"cell_type"``, with which it may begin, is
        implied.
    fallback
        ``"drop_last"`` or ``"error"``; see `lazypert.design.controls.ControlMappingConfig`.

    Attributes
    ----------
    names
        The keys without the cell type.
    missing_is_label
        Whether cells without a label match one another; False except in `of_batch`.

    Raises
    ------
    ConfigError
        If a name cannot be a key, or two names stand for one.
    ColumnNotFoundError
        If there is no such obs column.
    """

    def __init__(self, source: CellSource, match: tuple[str, ...], *, fallback: Fallback = "drop_last") -> None:
        self._source: CellSource | None = source
        self._groups, self.fallback, self.missing_is_label = source.groups, fallback, False
        self.names = match[1:] if match[:1] == (CELL_TYPE,) else match
        self._check(source)
        self._clear()

    @classmethod
    def of_batch(cls, groups: Groups) -> MatchKeys:
        """Make the key of the batch strategy, in which cells without a batch label match one another."""
        keys = cls.__new__(cls)
        keys._source, keys._groups, keys.names = None, groups, ("batch",)
        keys.fallback, keys.missing_is_label = "drop_last", True
        keys._clear()
        return keys

    def __repr__(self) -> str:
        return f"MatchKeys({', '.join(self.match)}; fallback={self.fallback!r})"

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what can be read again."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_columns", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._clear()

    @property
    def match(self) -> tuple[str, ...]:
        """All keys, the cell type first."""
        return (CELL_TYPE, *self.names)

    @property
    def obs_columns(self) -> tuple[str, ...]:
        """Names of the keys that are obs columns other than the batch."""
        return tuple(name for name in self.names if not self._is_batch(name))

    def _clear(self) -> None:
        self._columns: dict[str, tuple[NDArray[np.integer], int]] = {}
        self._lock = forkable_lock()

    def _check(self, source: CellSource) -> None:
        groups, seen = source.groups, set()
        for name in self.names:
            axis = axis_of(groups, name)
            if axis in UNUSABLE:
                raise ConfigError(f"match: got {name!r}, the {axis} column, expected {UNUSABLE[axis]}.")
            require(
                (axis or name) not in seen, "match", self.names, f"each key once, and {name!r} is one of the others"
            )
            seen.add(axis or name)
            if axis == "batch":
                _require_batches(source)
            elif not self._is_covariate(name):
                _require_column(source, name)

    def codes(self, name: str, positions: NDArray[np.int64]) -> NDArray[np.integer]:
        """(n,) codes of a key by position, -1 where the label is missing."""
        if self._is_batch(name):
            order = self._groups.row_order
            return self._groups.batch_of(positions if order is None else order[positions])
        if self._is_covariate(name):
            of_condition = self._groups.conditions.codes_of(name)
            return of_condition[self._groups.condition[self._groups.run_of(positions)]]
        return self._column(name)[0][positions]

    def n_labels(self, name: str) -> int:
        """Return the number of labels of a key."""
        if self._is_batch(name):
            return len(self._groups.labels["batch"])
        return len(self._groups.conditions.levels[name]) if self._is_covariate(name) else self._column(name)[1]

    def _is_batch(self, name: str) -> bool:
        return axis_of(self._groups, name) == "batch"

    def _is_covariate(self, name: str) -> bool:
        return name in self._groups.roles.covariates

    def _column(self, name: str) -> tuple[NDArray[np.integer], int]:
        """Codes by position, of one or two bytes as a rule, and the number of labels."""
        with self._lock:  # other threads need the same column
            if name not in self._columns:
                self._columns[name] = self._read(name)
            return self._columns[name]

    def _read(self, name: str) -> tuple[NDArray[np.integer], int]:
        assert self._source is not None
        order = self._groups.row_order
        if order is None:
            codes, labels = read_column(self._source, name, Rows([0], [self._groups.n_obs]))
            return codes, len(labels)
        by_row = np.argsort(order, kind="stable")  # rows are read in the order of the store
        sorted_codes, labels = read_column(self._source, name, order[by_row])
        codes = np.empty_like(sorted_codes)
        codes[by_row] = sorted_codes
        return codes, len(labels)


def _require_batches(source: CellSource) -> None:
    """Check that each dataset has batch labels: otherwise its cells would seem to share a batch with all controls."""
    screens = getattr(source, "sources", (source,))
    for screen in screens:
        if screen.groups.roles.batch_col is None and screen.groups.labels["batch"].tolist() == [ALL]:
            name = "this screen" if len(screens) == 1 else repr(screen)
            raise ConfigError(f"match: got 'batch', but {name} has no batch labels. Name its column as batch_col.")


def _require_column(source: CellSource, name: str) -> None:
    """Check that each dataset has an obs column, by reading one cell of each."""
    groups = source.groups
    _, first = np.unique(groups.codes["dataset"], return_index=True)
    try:
        source.read_obs(name, groups.rows(first).firsts())
    except ColumnNotFoundError as error:
        raise ColumnNotFoundError(f"match: {str(error).removeprefix('obs: ')}") from error
