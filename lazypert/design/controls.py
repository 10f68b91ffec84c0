"""Matching perturbed cells with control cells of the same kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict

import numpy as np

from lazypert._internal.config import Config
from lazypert._internal.validation import require_choice, require_flag, require_integer
from lazypert.design.control_policy import ControlPolicy, with_own_controls
from lazypert.design.control_pools import control_pools
from lazypert.errors import ConfigError
from lazypert.splits.names import SPLITS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups, HasGroups
    from lazypert.screen.rows import Rows
    from lazypert.splits.split_result import SplitResult

MappingStrategy = Literal["random", "batch"]

OnEmpty = Literal["error", "mask"]


@dataclass(frozen=True, kw_only=True, repr=False)
class ControlOptions(Config):
    """Options that control mappings share with the pipeline; `ControlMappingConfig` documents them."""

    n_basal_samples: int = 1
    seed: int = 42
    controls: ControlPolicy = "split"


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
    controls
        Which controls of the same cell type and dataset serve a cell, if there are splits:

        - ``"split"``: those of its own split. If that has none, as in few-shot validation and test, where all
          controls are training cells, those of the training split.
        - ``"train"``: those of the training split.
        - ``"shared"``: those of all splits.
        - ``"disjoint"``: those of its own split. Splits that have none get a share of the training controls, which
          then neither train nor serve training cells.
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


class ControlMappingKwargs(TypedDict, total=False):
    """Keyword arguments of `ControlMappingConfig`."""

    strategy: MappingStrategy
    n_basal_samples: int
    seed: int
    controls: ControlPolicy
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
        return groups.rows((groups.ids >= 0) & (self.config.map_controls | ~groups.is_control))

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
            If a group has no controls and ``on_empty`` is ``"error"``.
        """
        groups, by_batch, n = source.groups, self.strategy == "batch", self.config.n_basal_samples
        if splits is not None and self.config.controls == "disjoint":
            splits = with_own_controls(groups, splits, self.config.seed)
        mapped = self._mapped(groups)
        positions = mapped.positions(np.arange(len(mapped)))
        positions = positions[np.argsort(mapped.to_rows(positions), kind="stable")]
        rows, runs = mapped.to_rows(positions), groups.run_of(positions)
        mapping, pool_size = np.empty((len(rows), n), np.int64), np.empty(len(rows), np.int64)
        in_split = {} if splits is None else {name: splits[name].contains(positions) for name in SPLITS}
        in_no_split = ~np.logical_or.reduce([*in_split.values(), np.zeros(len(rows), bool)])
        for name, chosen in (*in_split.items(), (None, in_no_split)):
            if name is None:
                pools = control_pools(groups, by_batch=by_batch)
            else:
                pools = control_pools(groups, by_batch=by_batch, splits=splits, name=name, policy=self.config.controls)
            if self.config.on_empty == "error":
                pools.check(runs[chosen])
            mapping[chosen] = pools.fixed_controls(positions[chosen], n, self.config.seed)
            pool_size[chosen] = pools.sizes[runs[chosen]]
        if self.config.on_empty == "mask":
            masked: Any = np.ma.masked_array(mapping, mask=np.repeat(pool_size[:, None] == 0, n, axis=1))
            return masked
        return mapping


class RandomControlMapping(_Mapping):
    """Map cells to random controls of the same cell type and dataset."""

    strategy = "random"


class BatchControlMapping(_Mapping):
    """Map cells to controls of the same cell type, dataset and batch, or of any batch if theirs has none."""

    strategy = "batch"


def control_mapping(config: ControlMappingConfig) -> RandomControlMapping | BatchControlMapping:
    """Make the mapping for a config."""
    return BatchControlMapping(config) if config.strategy == "batch" else RandomControlMapping(config)
