"""Conditions: the combinations of further obs columns, such as dose and time, that cells are grouped by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lazypert._internal.validation import require
from lazypert.errors import ConfigError, LabelNotFoundError, near_matches
from lazypert.screen.labels import label_array, label_text
from lazypert.screen.run_keys import combinations_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from numpy.typing import NDArray

MISSING = ""
"""Label of a covariate that a cell has no value of, such as the dose of a control."""


@dataclass(frozen=True, eq=False)
class Conditions:
    """Combinations of the labels of covariates that occur, sorted by the texts of their labels in turn.

    Without covariates there is a single condition, number 0.

    Attributes
    ----------
    labels
        For each covariate, (n_conditions,) its label in each condition; empty where it is missing.
    """

    labels: dict[str, NDArray[np.str_]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.labels.values()))) if self.labels else 1

    def __repr__(self) -> str:
        names = " x ".join(f"{name} ({len(levels):,})" for name, levels in self.levels.items())
        return f"Conditions({len(self):,} of {names})" if self.labels else "Conditions()"

    @classmethod
    def encode(
        cls, columns: Mapping[str, tuple[NDArray[np.integer], NDArray[np.str_]]]
    ) -> tuple[NDArray[np.int32], Conditions]:
        """Combine the covariates of cells.

        Parameters
        ----------
        columns
            For each covariate, the (n_obs,) codes of cells, -1 where it is missing, and its sorted labels. There is at
            least one covariate.

        Returns
        -------
        (n_obs,) number of each cell's condition, and the conditions.
        """
        # A missing label and an empty one are the same, and come first.
        numbers = [
            np.where(np.append(labels, MISSING) == MISSING, -1, np.arange(len(labels) + 1))[codes]
            for codes, labels in columns.values()
        ]
        found, key = combinations_of(numbers, [len(labels) for _, labels in columns.values()])
        texts = {
            name: label_array([*map(str, labels), MISSING])[found[:, i]]
            for i, (name, (_, labels)) in enumerate(columns.items())
        }
        return key, cls(texts)

    @classmethod
    def unite(cls, parts: Sequence[Conditions]) -> tuple[Conditions, list[NDArray[np.int32]]]:
        """Return the conditions of several screens together, and the number in them of each condition of each screen.

        All have the same covariates.
        """
        if not parts[0].labels:
            return cls(), [np.zeros(1, np.int32) for _ in parts]
        columns = {}
        for name in parts[0].labels:
            texts = np.concatenate([part.labels[name].astype(object) for part in parts])
            labels, codes = np.unique(label_array(list(map(str, texts))), return_inverse=True)
            columns[name] = codes, labels
        number, united = cls.encode(columns)
        return united, np.split(number, np.cumsum([len(part) for part in parts])[:-1])

    @cached_property
    def levels(self) -> dict[str, NDArray[np.str_]]:
        """For each covariate, (n_labels,) its sorted labels, without the missing one."""
        return {name: np.unique(labels[labels != MISSING]) for name, labels in self.labels.items()}

    def codes_of(self, name: str) -> NDArray[np.int32]:
        """(n_conditions,) code of a covariate's label among its `levels`, -1 where it is missing."""
        labels, levels = self.labels[name], self.levels[name]
        return np.where(labels == MISSING, -1, np.searchsorted(levels, labels)).astype(np.int32)

    def table(self) -> pd.DataFrame:
        """Return one row per condition, and its label of each covariate in a column; indexed by number."""
        return pd.DataFrame(
            {name: labels.astype(object) for name, labels in self.labels.items()}, index=pd.RangeIndex(len(self))
        )

    def rank(self) -> NDArray[np.int64]:
        """(n_conditions,) place of each condition in a list for people: numbers ascend, 2 comes before 10."""
        texts = [pd.Series(labels, dtype=object) for labels in reversed(self.labels.values())]
        numbers = [pd.to_numeric(column, errors="coerce").fillna(-np.inf) for column in texts]
        keys = [key for column, number in zip(texts, numbers, strict=True) for key in (column.rank(), number)]
        out = np.empty(len(self), dtype=np.int64)
        out[np.lexsort(keys) if keys else slice(None)] = np.arange(len(self))
        return out

    def where(self, wanted: Mapping[str, Any]) -> NDArray[np.bool_]:
        """(n_conditions,) bool: which conditions have the wanted labels.

        Parameters
        ----------
        wanted
            For each covariate that matters, a label or several: text or numbers, None where it is missing.

        Raises
        ------
        ConfigError
            If it is not a mapping, or a name is not that of a covariate.
        LabelNotFoundError
            If a label does not occur.
        """
        expected = "a dictionary of labels, such as {'dose': (1, 10)}"
        require(isinstance(wanted, Mapping), "covariates", wanted, expected)
        chosen = np.ones(len(self), dtype=bool)
        for name, value in wanted.items():
            if name not in self.labels:
                known = ", ".join(map(repr, self.labels)) or "none"
                raise ConfigError(
                    f"covariates: got {name!r}, expected a covariate of this screen ({known}). Name the obs column in "
                    f"covariates=... when you convert or open the screen."
                )
            is_list = isinstance(value, list | tuple | np.ndarray | pd.Index | pd.Series | set | range)
            texts = [MISSING if pd.isna(label) else label_text(label) for label in (value if is_list else [value])]
            for text in texts:
                if text not in self.labels[name]:
                    raise LabelNotFoundError(
                        f"covariates[{name!r}]: got {text or None!r}, expected a label in obs column {name!r}. "
                        f"{near_matches(text, self.levels[name])}"
                    )
            chosen &= np.isin(self.labels[name], texts)
        return chosen
