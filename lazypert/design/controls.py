"""Matching perturbed cells with control cells of the same kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict, cast

import numpy as np

from lazypert._internal.config import Config
from lazypert._internal.validation import require_choice, require_flag, require_integer
from lazypert.design.control_policy import ControlPolicy, with_own_controls
from lazypert.design.control_pools import FixedPairs, control_pools
from lazypert.design.match_keys import MatchKeys
from lazypert.design.match_options import Fallback, match_names
from lazypert.design.row_places import RowPlaces
from lazypert.errors import ConfigError
from lazypert.splits.names import SPLITS, Split

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lazypert.design.control_pools import ControlPools
    from lazypert.screen.groups import Groups, HasGroups
    from lazypert.screen.rows import Rows
    from lazypert.splits.cell_source import CellSource
    from lazypert.splits.split_result import SplitResult

MappingStrategy = Literal["random", "batch"]

OnEmpty = Literal["error", "mask"]


@dataclass(frozen=True, kw_only=True, repr=False)
class ControlOptions(Config):
    """Options that control mappings share with the pipeline; `ControlMappingConfig` documents them."""

    n_basal_samples: int = 1
    seed: int = 42
    controls: ControlPolicy = "split"
    match: tuple[str, ...] | None = None
    fallback: Fallback = "drop_last"


@dataclass(frozen=True, kw_only=True, repr=False)
class ControlMappingConfig(ControlOptions):
    """How cells are matched with controls.

    Parameters
    ----------
    strategy
        ``"random"``: any control of the same cell type and dataset. ``"batch"``: one of the same
        batch too, or one of the same cell type and dataset if the batch has none. With `match`, that option decides
        instead, and ``"batch"`` must be one of its keys here.
    n_basal_samples
        Controls per cell; distinct if the pool is large enough.
    seed
        Determines the pairs.
    controls
        Which controls of the same cell type and dataset serve a cell, if there are splits:

        - ``"split"``: those of its own split. If that has none, as in few-shot validation and test, where all
          controls are training cells, those of the training split.
        - ``"train"``: those of the training split.
        - ``"shared"``: those of all splits.
        - ``"disjoint"``: those of its own split. Splits that have none get a share of the training controls, which
          then neither train nor serve training cells.
    match
        Keys that controls share with the cell, the most important one first: ``("cell_type", "donor", "plate")``. A
        key is ``"batch"`` or the name of an obs column. Controls always come from the cell's own cell type and dataset,
        so ``"cell_type"`` comes first and may be left out. A cell without a label of a key shares it with no control.
    fallback
        What to do about a cell that no control of its pool shares all keys with: ``"drop_last"`` leaves out the last
        key, then the one before it, and so on down to the cell type; ``"error"`` treats its pool as empty.
    map_controls
        Map control cells too (to controls, possibly themselves).
    on_empty
        What to do about cells whose pool is empty: ``"error"``, or ``"mask"`` them in the result.
    """

    strategy: MappingStrategy = "random"
    map_controls: bool = False
    on_empty: OnEmpty = "error"

    def __post_init__(self) -> None:
        require_choice("strategy", self.strategy, MappingStrategy)
        require_integer("n_basal_samples", self.n_basal_samples, 1)
        require_choice("on_empty", self.on_empty, OnEmpty)
        require_choice("controls", self.controls, ControlPolicy)
        require_integer("seed", self.seed)
        require_flag("map_controls", self.map_controls)
        object.__setattr__(self, "match", match_names(self.match, self.fallback))
        if self.match is not None and self.strategy == "batch" and "batch" not in self.match:
            raise ConfigError(
                f"match: got {self.match!r} with the strategy 'batch', expected 'batch' among the keys. Add it, or use "
                "the strategy 'random'."
            )


class ControlMappingKwargs(TypedDict, total=False):
    """Keyword arguments of `ControlMappingConfig`."""

    strategy: MappingStrategy
    n_basal_samples: int
    seed: int
    controls: ControlPolicy
    match: tuple[str, ...] | None
    fallback: Fallback
    map_controls: bool
    on_empty: OnEmpty


class _Mapping:
    strategy: ClassVar[MappingStrategy]

    def __init__(self, config: ControlMappingConfig | None = None) -> None:
        self.config = config or ControlMappingConfig(strategy=self.strategy)
        if self.config.strategy != self.strategy:
            raise ConfigError(
                f"strategy: got {self.config.strategy!r}, expected {self.strategy!r} for {type(self).__name__}."
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config!r})"

    def mapped_rows(self, source: HasGroups) -> NDArray[np.int64]:
        """(n_mapped,) store rows that `build_mapping` maps, ascending."""
        return np.sort(self._mapped(source.groups)[:])

    def _mapped(self, groups: Groups) -> Rows:
        return mapped_cells(groups, map_controls=self.config.map_controls)

    def build_mapping(self, source: HasGroups, splits: SplitResult | None = None) -> NDArray[np.int64]:
        """Map every perturbed cell to controls.

        Parameters
        ----------
        splits
            Match each cell by its split and the policy `controls`; cells in no split draw from all controls.

        Returns
        -------
        (n_mapped, n_basal_samples) int64 store rows of controls, one row for each of
        `mapped_rows`; a masked array with ``on_empty="mask"``.

        Raises
        ------
        EmptyPoolError
            If a group has no controls, or a cell no complete match with ``fallback="error"``, and ``on_empty`` is
            ``"error"``.
        ConfigError
            If a key of `match` cannot be used with this screen.
        ColumnNotFoundError
            If there is no such obs column.
        """
        groups, n = source.groups, self.config.n_basal_samples
        place = RowPlaces(self._mapped(groups))
        mapping = np.empty((len(place), n), np.int64)
        is_empty = np.zeros(len(place) if self.config.on_empty == "mask" else 0, bool)
        for block in self.iterate(source, splits):
            at = place.of(block.positions, block.rows)
            mapping[at] = block.controls
            if len(is_empty):
                is_empty[at] = ~block.has_controls
        if self.config.on_empty == "mask":
            masked: Any = np.ma.masked_array(mapping, mask=np.repeat(is_empty[:, None], n, axis=1))
            return masked
        return mapping

    def iterate(self, source: HasGroups, splits: SplitResult | None = None) -> Iterator[FixedPairs]:
        """Map every perturbed cell to controls, a bounded number of cells at a time.

        For screens whose whole mapping does not fit into memory, where it takes ``8 * n_basal_samples`` bytes per cell.
        Blocks have some 10^5 cells each, and come in the order of the splits and groups.

        Parameters
        ----------
        splits
            As in `build_mapping`.

        Yields
        ------
        `FixedPairs`: (m,) ``rows`` of cells, and (m, n_basal_samples) ``controls``, the rows that `build_mapping` gives
        for them. With ``on_empty="mask"``, ``has_controls`` says which cells have any.

        Raises
        ------
        EmptyPoolError, ConfigError, ColumnNotFoundError
            As in `build_mapping`, before the first block of a split.
        """
        groups = source.groups
        splits, mapped = splits_to_match(groups, self.config, splits), self._mapped(groups)
        for name, pools in pools_of_splits(source, self.config, splits):
            own = _cells_of(groups, mapped, splits, name)
            if not len(own):
                continue
            if self.config.on_empty == "error":
                pools.check(groups.run_of(own.starts))
                pools.check_matches(own)
            is_some = name is None and splits is not None
            pairs = pools.fixed_pairs(
                self.config.n_basal_samples, self.config.seed, with_controls=self.config.map_controls
            )
            for block in pairs:
                yield block.where(own.contains(block.positions)) if is_some else block


class RandomControlMapping(_Mapping):
    """Map cells to random controls of the same cell type and dataset."""

    strategy = "random"


class BatchControlMapping(_Mapping):
    """Map cells to controls of the same cell type, dataset and batch, or of any batch if theirs has none."""

    strategy = "batch"


def mapped_cells(groups: Groups, *, map_controls: bool) -> Rows:
    """Return the cells that are matched: the perturbed ones or, with `map_controls`, all that have labels."""
    return groups.rows((groups.ids >= 0) & (map_controls | ~groups.is_control))


def _cells_of(groups: Groups, mapped: Rows, splits: SplitResult | None, name: Split | None) -> Rows:
    """Return those of the mapped cells that are in a split, or in none."""
    if splits is None:
        return mapped
    if name is None:
        return mapped.without([splits[split] for split in SPLITS])
    is_mapped = np.zeros(len(groups.start), bool)
    is_mapped[groups.run_of(mapped.starts)] = True
    return splits[name].take_intervals(is_mapped[groups.run_of(splits[name].starts)])


def match_keys(source: HasGroups, config: ControlMappingConfig) -> MatchKeys | None:
    """Return the keys of a config's `match`; None without this option."""
    if config.match is None:
        return None
    return MatchKeys(cast("CellSource", source), config.match, fallback=config.fallback)


def splits_to_match(groups: Groups, config: ControlMappingConfig, splits: SplitResult | None) -> SplitResult | None:
    """Return the splits as cells are matched in them: with ``controls="disjoint"``, each has controls of its own."""
    is_moved = splits is not None and config.controls == "disjoint"
    return with_own_controls(groups, splits, config.seed) if is_moved and splits is not None else splits


def pools_of_splits(
    source: HasGroups, config: ControlMappingConfig, splits: SplitResult | None
) -> list[tuple[Split | None, ControlPools]]:
    """Return the pools that the cells of each split draw from; last those of cells in no split: all controls."""
    groups, keys, by_batch = source.groups, match_keys(source, config), config.strategy == "batch"
    of_splits: list[tuple[Split | None, ControlPools]] = [
        (name, control_pools(groups, by_batch=by_batch, match=keys, splits=splits, name=name, policy=config.controls))
        for name in (SPLITS if splits is not None else ())
    ]
    return [*of_splits, (None, control_pools(groups, by_batch=by_batch, match=keys))]


def split_numbers(splits: SplitResult | None, positions: NDArray[np.int64]) -> NDArray[np.int8]:
    """(n,) which of `pools_of_splits` each cell belongs to, by position."""
    if splits is None:
        return np.zeros(len(positions), np.int8)
    number = np.full(len(positions), len(SPLITS), np.int8)
    for i, name in enumerate(SPLITS):
        number[splits[name].contains(positions)] = i
    return number


def control_mapping(config: ControlMappingConfig) -> RandomControlMapping | BatchControlMapping:
    """Make the mapping for a config."""
    return BatchControlMapping(config) if config.strategy == "batch" else RandomControlMapping(config)
