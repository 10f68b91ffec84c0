"""What all splitters share, and the table of splitters that saved rules are looked up in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from lazypert.errors import ConfigError
from lazypert.screen.rows import count_distinct
from lazypert.splits.cell_source import as_cell_source
from lazypert.splits.config import SplitRule
from lazypert.splits.filters import usable_runs
from lazypert.splits.rule_registry import RULES
from lazypert.splits.split_result import SplitResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import xarray as xr
    from numpy.typing import NDArray

    from lazypert.screen.rows import Rows
    from lazypert.splits.cell_source import CellSource

RuleType = TypeVar("RuleType", bound=SplitRule)


class Splitter(Generic[RuleType]):
    """A rule that says which cells train, validate and test.

    The result depends on the seed, and on the names and labels of cells; never on their order, on files, or on codes.

    Parameters
    ----------
    config
        Options of the rule.
    """

    config_type: ClassVar[type[Any]]

    def __init_subclass__(cls) -> None:
        RULES[cls.__name__] = (cls, cls.config_type)

    def __init__(self, config: RuleType) -> None:
        self.config = config

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config!r})"

    def split(self, source: CellSource | xr.Dataset) -> SplitResult:
        """Split a source's cells.

        Parameters
        ----------
        source
            A `PerturbationSource`, a Dataset from `lazypert.open` or a selection of one, or its ``ds.pert``.

        Returns
        -------
        The split. Cells with a missing label, and those that are filtered out, are in no split.

        Raises
        ------
        LabelNotFoundError
            If a named label does not occur.
        ConfigError
            If nothing would be held out, or a cell occurs more than once in a selection, so that it could be in two
            splits.
        """
        source = as_cell_source(source)
        _require_unique_cells(source)
        used = usable_runs(source.groups, self.config)
        train, valid, test = self._divide(source, used)
        return SplitResult(train, valid, test, source.groups, self)

    def _divide(self, source: CellSource, used: NDArray[np.bool_]) -> Sequence[Rows]:
        """Rows for training, validation and test, from the runs that are used."""
        raise NotImplementedError


def _require_unique_cells(source: CellSource) -> None:
    rows = source.groups.row_order
    if rows is None:
        return
    n_distinct = count_distinct(rows)
    if n_distinct < len(rows):
        raise ConfigError(
            f"source: got a selection of {len(rows):,} cells, of which {n_distinct:,} are distinct; expected each cell "
            "once, because a repeated one could be in two splits. Select cells without repeats, and repeat them "
            "afterwards."
        )
