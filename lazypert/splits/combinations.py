"""Splits of combinatorial screens: parts of perturbations are held out, with every combination that contains them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lazypert.errors import ConfigError
from lazypert.screen.combinations import parts_of
from lazypert.splits.config import CombinationSplitterConfig
from lazypert.splits.filters import holds_nothing_out, usable_runs
from lazypert.splits.fractions import share
from lazypert.splits.label_choice import TEST, TRAIN, VALID, choose_labels
from lazypert.splits.label_keys import rank_labels
from lazypert.splits.names import SPLITS
from lazypert.splits.splitter_base import Splitter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.screen.rows import Rows
    from lazypert.splits.cell_source import CellSource

_NONE = -1


@dataclass(frozen=True, eq=False)
class _Combination:
    """Perturbations with the same parts.

    Attributes
    ----------
    parts
        Sorted parts.
    split
        Number of its split, -1 for none.
    n_seen
        How many of its parts train as single perturbations.
    """

    parts: tuple[str, ...]
    split: int
    n_seen: int


class CombinationSplitter(Splitter[CombinationSplitterConfig]):
    """Hold out parts of perturbations such as ``A+B``, with every combination that contains them.

    A part is *seen* if its single perturbation trains: if it is not held out, and the screen has cells with this
    part alone. This is the count by which GEARS names its generalisation classes (seen 0, 1 or 2 of 2).

    - Single perturbations of held-out parts are tested (or validate).
    - Combinations with a part held out for test are tested, or in no split if `n_seen` does not list their number of
      seen parts. Those with parts for validation, and none for test, likewise validate.
    - Of combinations all of whose parts are seen, `test_combination_frac` are tested and `valid_combination_frac`
      validate.
    - All other combinations, single perturbations and controls train.

    References
    ----------
    Roohani, Huang and Leskovec, "Predicting transcriptional outcomes of novel multigene perturbations with GEARS",
    Nature Biotechnology 2024.
    """

    config_type = CombinationSplitterConfig

    def _divide(self, source: CellSource, used: NDArray[np.bool_]) -> list[Rows]:
        groups = source.groups
        split_of_code = np.full(len(groups.labels["perturbation"]) + 1, _NONE)
        for code, combination in self._combinations(groups, used).items():
            split_of_code[code] = combination.split
        split_of_code[np.flatnonzero(groups.is_control_code)] = TRAIN
        split = np.where(used, split_of_code[groups.codes["perturbation"]], _NONE)
        return [groups.rows(split == number) for number in range(len(SPLITS))]

    def table(self, source: CellSource) -> pd.DataFrame:
        """Return one row per perturbation: its parts, how many of them are seen, its split and number of cells.

        Columns are ``perturbation``, ``n_parts``, ``n_seen``, ``split`` (empty for no split) and ``n_cells``. Controls
        are left out.
        """
        groups = source.groups
        used = usable_runs(groups, self.config)
        n_cells = np.bincount(
            groups.codes["perturbation"][used], weights=groups.sizes[used], minlength=len(groups.labels["perturbation"])
        )
        rows = [
            (
                str(groups.labels["perturbation"][code]),
                len(found.parts),
                found.n_seen,
                "" if found.split == _NONE else SPLITS[found.split],
                int(n_cells[code]),
            )
            for code, found in sorted(self._combinations(groups, used).items())
        ]
        return pd.DataFrame(rows, columns=["perturbation", "n_parts", "n_seen", "split", "n_cells"])

    def _combinations(self, groups: Groups, used: NDArray[np.bool_]) -> dict[int, _Combination]:
        """Combination of each perturbation by code, except the control's."""
        config, separator = self.config, self._separator(groups)
        codes = np.unique(groups.codes["perturbation"][used])
        parts_by_code = {
            int(code): parts_of(str(groups.labels["perturbation"][code]), separator, groups.roles)
            for code in codes[~groups.is_control_code[codes]]
        }
        split_of_part = self._split_parts(
            sorted({part for parts in parts_by_code.values() for part in parts}), separator
        )
        known = sorted(set(parts_by_code.values()))
        seen = {parts[0] for parts in known if len(parts) == 1 and split_of_part[parts[0]] == TRAIN}
        n_seen = {parts: len(seen.intersection(parts)) for parts in known}
        split = {parts: self._split_of(parts, split_of_part, n_seen[parts]) for parts in known}
        split |= self._split_seen([p for p in known if len(p) > 1 and n_seen[p] == len(p)], separator)
        if TEST not in split.values():
            raise holds_nothing_out("n_seen", config.n_seen, "which no combination has")
        return {code: _Combination(parts, split[parts], n_seen[parts]) for code, parts in parts_by_code.items()}

    def _separator(self, groups: Groups) -> str:
        separator = self.config.separator or groups.roles.separator
        if separator is None:
            raise ConfigError("separator: got None, expected the text between the parts of a combination, such as '+'.")
        return separator

    def _split_parts(self, parts: list[str], separator: str) -> dict[str, int]:
        config = self.config
        if config.test is None and config.valid is None:
            return dict.fromkeys(parts, TRAIN)
        expected = f"a part of a perturbation label (divided at {separator!r})"
        split = choose_labels([(part,) for part in parts], config.test, config.valid, config, expected)
        return dict(zip(parts, split.tolist(), strict=True))

    def _split_of(self, parts: tuple[str, ...], split_of_part: dict[str, int], n_seen: int) -> int:
        """Split that follows from the parts that are held out."""
        splits = {split_of_part[part] for part in parts}
        split = TEST if TEST in splits else VALID if VALID in splits else TRAIN
        is_wanted = len(parts) < 2 or self.config.n_seen is None or n_seen in self.config.n_seen
        return split if split == TRAIN or is_wanted else _NONE

    def _split_seen(self, combinations: list[tuple[str, ...]], separator: str) -> dict[tuple[str, ...], int]:
        """Split of the combinations that are chosen from those all of whose parts are seen."""
        config = self.config
        wanted = [parts for parts in combinations if config.n_seen is None or len(parts) in config.n_seen]
        # `rank_labels` takes labels of one width: of a combination, this is the text that orders its parts.
        order = rank_labels([(separator.join(parts),) for parts in wanted], config.seed)
        split: dict[tuple[str, ...], int] = {}
        first = 0
        for name, number in (("test_combination_frac", TEST), ("valid_combination_frac", VALID)):
            fraction = getattr(config, name)
            n_chosen = share(len(wanted), fraction)
            if fraction and not n_chosen:
                raise holds_nothing_out(
                    name, fraction, f"which is no whole combination of {len(wanted)} that are fully seen"
                )
            split |= dict.fromkeys((wanted[i] for i in order[first : first + n_chosen]), number)
            first += n_chosen
        return split
