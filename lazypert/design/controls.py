"""Matching perturbed cells with control cells of the same kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict

import numpy as np

from lazypert._internal.config import Config
from lazypert._internal.validation import require_choice, require_flag, require_integer
from lazypert.design.control_pools import control_pools
from lazypert.design.split_names import SPLITS
from lazypert.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.design.splits import SplitResult
    from lazypert.screen.groups import Groups, HasGroups

MappingStrategy = Literal["random", "batch"]

OnEmpty = Literal["error", "mask"]


@dataclass(frozen=True, kw_only=True, repr=False)
class ControlOptions(Config):
    """Options that control mappings share with the pipeline; `ControlMappingConfig` documents them."""

    n_basal_samples: int = 1
    seed: int = 42


@dataclass(frozen=True, kw_only=True, repr=False)
class ControlMappingConfig(ControlOptions):
    """How cells are matched with controls.

    Parameters
    ----------
    strategy
        ``"random"``: any control of the same cell type and dataset. ``"batch"``: one of the same
        batch too, or one of the same cell type and dataset if the batch has none.
    n_basal_samples
        Controls per cell; distinct if the pool is large enough.
    seed
        Determines the pairs.
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
        require_integer("seed", self.seed)
        require_flag("map_controls", self.map_controls)


class ControlMappingKwargs(TypedDict, total=False):
    """Keyword arguments of `ControlMappingConfig`."""

    strategy: MappingStrategy
    n_basal_samples: int
    seed: int
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
        groups = source.groups
        is_mapped = (groups.ids >= 0) & (self.config.map_controls | ~groups.is_control)
        return np.sort(groups.rows(is_mapped)[:])

    def build_mapping(self, source: HasGroups, splits: SplitResult | None = None) -> NDArray[np.int64]:
        """Map every perturbed cell to controls.

        Parameters
        ----------
        splits
            Match each cell within its split; cells in no split draw from all controls.

        Returns
        -------
        (n_mapped, n_basal_samples) int64 store rows of controls, one row for each of
        `mapped_rows`; a masked array with ``on_empty="mask"``.

        Raises
        ------
        EmptyPoolError
            If a group has no controls and ``on_empty`` is ``"error"``.
        """
        groups, by_batch = source.groups, self.strategy == "batch"
        rows = self.mapped_rows(source)
        all_pools = control_pools(groups, by_batch=by_batch)
        run_of_row = groups.expand(np.arange(len(groups.start)), _n_rows(groups))
        runs = run_of_row[rows]
        n, words = self.config.n_basal_samples, (self.config.seed,)
        mapping, pool_size = all_pools.draw(rows, runs, n, words), all_pools.sizes[runs]
        in_no_split = np.ones(len(rows), dtype=bool)
        split_rows = {} if splits is None else {name: np.asarray(splits[name]) for name in SPLITS}
        for name, members in split_rows.items():
            in_split = np.isin(rows, members)
            in_no_split &= ~in_split
            pools = control_pools(groups, by_batch=by_batch, splits=splits, name=name)
            if self.config.on_empty == "error":
                pools.check(runs[in_split])
            mapping[in_split] = pools.draw(rows[in_split], runs[in_split], n, words)
            pool_size[in_split] = pools.sizes[runs[in_split]]
        if self.config.on_empty == "error":
            all_pools.check(runs[in_no_split])
        if self.config.on_empty == "mask":
            masked: Any = np.ma.masked_array(mapping, mask=np.repeat(pool_size[:, None] == 0, n, axis=1))
            return masked
        return mapping


def _n_rows(groups: Groups) -> int:
    return groups.n_obs if groups.row_order is None else int(groups.row_order.max(initial=-1)) + 1


class RandomControlMapping(_Mapping):
    """Map cells to random controls of the same cell type and dataset."""

    strategy = "random"


class BatchControlMapping(_Mapping):
    """Map cells to controls of the same cell type, dataset and batch, or of any batch if theirs has none."""

    strategy = "batch"


def control_mapping(config: ControlMappingConfig) -> RandomControlMapping | BatchControlMapping:
    """Make the mapping for a config."""
    return BatchControlMapping(config) if config.strategy == "batch" else RandomControlMapping(config)
