"""Splits that hold out whole labels: perturbations, cell types, batches, donors, or combinations of columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lazypert.errors import ConfigError
from lazypert.screen.conditions import MISSING
from lazypert.splits.cell_labels import axis_of, read_cell_labels
from lazypert.splits.config import HeldOutSplitterConfig
from lazypert.splits.group_cutting import unite
from lazypert.splits.label_choice import TRAIN, choose_fold, choose_labels
from lazypert.splits.names import SPLITS
from lazypert.splits.splitter_base import Splitter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.screen.rows import Rows
    from lazypert.splits.cell_source import CellSource


class HeldOutSplitter(Splitter[HeldOutSplitterConfig]):
    """Hold out all cells of some labels for test, and of others for validation; all other labels train.

    If labels contain perturbations, all controls train. Otherwise controls go where their label goes. Cells
    without a label are in no split, except that controls without a covariate, such as a dose, train.
    """

    config_type = HeldOutSplitterConfig

    def _divide(self, source: CellSource, used: NDArray[np.bool_]) -> list[Rows]:
        groups, columns = source.groups, self.config.columns
        always_train = np.zeros_like(used)
        if any(axis_of(groups, column) == "perturbation" for column in columns):
            always_train = used & groups.is_control
        for name in groups.roles.covariates:
            if name in columns:
                always_train |= used & groups.is_control & (groups.conditions.labels[name] == MISSING)[groups.condition]
        runs = used & ~always_train
        cells = read_cell_labels(source, columns, runs, "by")
        split_of_label = np.append(self._choose(source, cells.labels), np.int8(-1))
        split = split_of_label[cells.codes]
        if cells.of_runs:
            numbers = np.flatnonzero(runs)
            parts = [groups.rows(numbers[split == number]) for number in range(len(SPLITS))]
        else:
            rows = groups.rows(runs)
            parts = [rows.where(split == number) for number in range(len(SPLITS))]
        parts[TRAIN] = unite(groups, [parts[TRAIN], groups.rows(always_train)])
        return parts

    def _choose(self, source: CellSource, labels: list[tuple[str, ...]]) -> NDArray[np.int8]:
        config = self.config
        if not labels:
            raise ConfigError(f"by: got {config.by!r}, but no cell has a label there, so nothing can be held out.")
        if config.n_folds is not None:
            assert config.fold is not None
            return choose_fold(labels, config, config.n_folds, config.fold, valid_fold=config.valid_fold)
        self._refuse_controls(source)
        what = "a label of" if isinstance(config.by, str) else "a tuple of labels of"
        return choose_labels(labels, config.test, config.valid, config, f"{what} {config.by!r}")

    def _refuse_controls(self, source: CellSource) -> None:
        """Raise an error that says so if a named label marks controls."""
        groups, columns = source.groups, self.config.columns
        places = [i for i, column in enumerate(columns) if axis_of(groups, column) == "perturbation"]
        for option in ("test", "valid"):
            value = getattr(self.config, option)
            for label in value if isinstance(value, tuple) else ():
                names = (label,) if isinstance(label, str) else label
                for name in (names[place] for place in places if groups.roles.is_control_label(names[place])):
                    raise ConfigError(
                        f"{option}: got {label!r}, but {name!r} marks the controls, which all train. Remove it."
                    )
