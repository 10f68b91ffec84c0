"""What the pipeline sets up: splits, controls, and the loaders of each split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Unpack

from lazypert._internal.config import derive
from lazypert._internal.validation import make_config, require, require_flag, require_number
from lazypert.design.batch_sampler import PerturbationBatchSampler
from lazypert.design.control_coverage import control_coverage
from lazypert.design.control_policy import SplitControls
from lazypert.design.control_pools import ControlPools
from lazypert.design.controls import control_mapping, match_keys
from lazypert.design.sampler_config import PerturbationSamplerConfig, SamplerOptions
from lazypert.design.sentence_plan import SentencePlan
from lazypert.loading.config import LoaderConfig, LoaderOptions
from lazypert.quality import filter_splits
from lazypert.splits.names import split_name

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from lazypert.loading.loader import Loader
    from lazypert.pipeline import PerturbationPipelineConfig
    from lazypert.quality import KnockdownResult
    from lazypert.screen.rows import Rows
    from lazypert.sources.base import PerturbationSource
    from lazypert.splits.split_result import SplitResult

_SAMPLER_FIELDS = tuple(field.name for field in fields(PerturbationSamplerConfig))

_LOADER_ARGUMENTS = ("split", "shuffle", "weights", "control_sentences")


class PipelineLoaderOptions(SamplerOptions, LoaderOptions, total=False):
    """Options of `PerturbationPipelineResult.loader`."""


class PerturbationPipelineResult:
    """What `PerturbationPipeline.setup` returns. Row numbers are rows of the store.

    Attributes
    ----------
    source
        The cells.
    train_indices, valid_indices, test_indices
        `Rows` of each split, without the cells that QC removed.
    knockdown
        Result of QC, or None without QC.
    filter_mask
        (n_obs,) bool mask of the cells that passed QC, or None without QC.
    original_splits, is_split_given
        The split as it was made, before controls were moved or cells removed; and whether it was made by something
        else than the config's own rule.
    config
        Options of the pipeline, with the `match` and `fallback` of the experiment if it has some.
    match_keys
        Keys that controls share with cells; None without the option `match`.
    train_sampler
        Batches of sentences, as split indices: positions in `train_indices`.
    """

    def __init__(
        self,
        config: PerturbationPipelineConfig,
        source: PerturbationSource,
        splits: SplitResult,
        knockdown: KnockdownResult | None,
    ) -> None:
        self.config, self.source, self.knockdown = config, source, knockdown
        self._all_splits = self.original_splits = splits
        if knockdown is not None:
            splits = filter_splits(splits, knockdown)
        self.splits = splits
        self.is_split_given = False
        self.match_keys = match_keys(source, config.mapping_config())
        plan = SentencePlan.from_rows(
            config.sampler_config(), source.groups, splits.train_indices, by_batch=self._by_batch
        )
        self.train_sampler = PerturbationBatchSampler(config.sampler_config(), plan)

    def __repr__(self) -> str:
        return f"PerturbationPipelineResult(\n    {self.splits!r}\n    of {self.source!r}\n)"

    @property
    def _by_batch(self) -> bool:
        return self.config.mapping_strategy == "batch"

    @property
    def train_indices(self) -> Rows:
        """Rows of the training cells."""
        return self.splits.train_indices

    @property
    def valid_indices(self) -> Rows:
        """Rows of the validation cells."""
        return self.splits.valid_indices

    @property
    def test_indices(self) -> Rows:
        """Rows of the test cells."""
        return self.splits.test_indices

    @property
    def filter_mask(self) -> NDArray[np.bool_] | None:
        """(n_obs,) bool mask, by store row, of the cells that pass knockdown QC; None without QC."""
        return None if self.knockdown is None else self.knockdown.mask

    @cached_property
    def control_mapping(self) -> NDArray[np.int64]:
        """(n_perturbed, n_basal_samples) store rows of each perturbed cell's controls, by the policy `controls`."""
        return control_mapping(self.config.mapping_config()).build_mapping(self.source, self._all_splits)

    def control_coverage(self, *, map_controls: bool = False) -> pd.DataFrame:
        """Count the cells of each group and split by the keys of `match` that controls share with them.

        Cells that quality control removed are left out. See `lazypert.design.control_coverage` for the columns.

        Parameters
        ----------
        map_controls
            Count control cells too, which loaders deliver with controls of their own.
        """
        require_flag("map_controls", map_controls)
        config = replace(self.config.mapping_config(), map_controls=map_controls)
        return control_coverage(self.source, config, self._all_splits, kept=self.filter_mask, only_splits=True)

    def get_element(self, row: int) -> dict[str, Any]:
        """Return one cell by store row: counts, codes, names and one-hot vectors."""
        return self.source.element(row)

    def get_var_dims(self) -> dict[str, int]:
        """Return the dimensions that a model needs."""
        return self.source.get_var_dims()

    def loader(
        self,
        split: str = "train",
        *,
        shuffle: bool | None = None,
        weights: Mapping[str, float] | None = None,
        control_sentences: bool | None = None,
        **options: Unpack[PipelineLoaderOptions],
    ) -> Loader:
        """Iterate over a split in batches of JAX arrays.

        Parameters
        ----------
        split
            ``"train"``, ``"valid"`` or ``"test"``.
        shuffle
            By default only for training. Evaluation iterates over the groups in order.
        weights
            Share of each epoch per perturbation, ``{label: weight}``; by default every cell is visited once.
            Perturbations that are not named get 0. With covariates, the conditions of a perturbation share its weight
            equally.
        control_sentences
            Which control cells are delivered as sentences of their own: True for all that serve this split, False
            for none, and None for those that are cells of this split.
        **options
            Options of `PerturbationSamplerConfig` (sentences, shuffle buffer, balance) and of `LoaderConfig`
            (layout, genes, normalisation, embeddings, devices, threads, memory). `sentence_size`,
            `sentences_per_batch`, `seed` and `n_basal_samples` default to those of the pipeline, and
            `sentence_size` to the one that was chosen for the training cells.

        Returns
        -------
        A `Loader`; iterating over it runs through one epoch.

        Raises
        ------
        EmptyPoolError
            If a group of the split has no controls, or a cell no complete match with ``fallback="error"``.
        ConfigError
            If an option is unknown or has an invalid value.
        """
        from lazypert.loading.loader import Loader

        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        sampling = {name: given.pop(name) for name in _SAMPLER_FIELDS if name in given}
        given.setdefault("n_basal_samples", self.config.n_basal_samples)
        loader_config = make_config(LoaderConfig, given, also=[*_SAMPLER_FIELDS, *_LOADER_ARGUMENTS])
        name, groups = split_name(split), self.source.groups
        if "downsample_cells" not in sampling:
            sampling.setdefault("sentence_size", self.train_sampler.plan.sentence_size)
        if control_sentences is not None:
            require_flag("control_sentences", control_sentences)
        # Controls are assigned before quality control, so that it does not change which ones a cell gets.
        controls = SplitControls.of(groups, self._all_splits, name, self.config.controls, delivered=control_sentences)
        rows = controls.cells if self.filter_mask is None else controls.cells.keep(self.filter_mask)
        plan = SentencePlan.from_rows(
            derive(PerturbationSamplerConfig, self.config, **sampling),
            groups,
            rows,
            by_batch=self._by_batch,
            shuffle=name == "train" if shuffle is None else require_flag("shuffle", shuffle),
            weights=None if weights is None else self._weights(weights),
        )
        pools = ControlPools(groups, controls.pool, controls.cells, by_batch=self._by_batch, match=self.match_keys)
        if loader_config.n_basal_samples:
            pools.check(groups.run_of(rows.starts))
            pools.check_matches(rows)
        loader = Loader(self.source, rows, plan, pools, loader_config)
        loader.arguments = {
            "split": name,
            "shuffle": plan.shuffle,
            "weights": weights,
            "control_sentences": control_sentences,
            **{option: getattr(plan.config, option) for option in sampling},
            **{option: getattr(loader_config, option) for option in given},
            "sentence_size": plan.sentence_size,
        }
        return loader

    def _weights(self, weights: Mapping[str, float]) -> NDArray[np.float64]:
        """(n_perturbations,) weight of each perturbation, by code."""
        import numpy as np

        require(isinstance(weights, Mapping), "weights", weights, "a dict of numbers by perturbation")
        groups = self.source.groups
        by_code = np.zeros(len(groups.labels["perturbation"]))
        for label, weight in weights.items():
            by_code[groups.code_of("perturbation", label)] = require_number(f"weights[{label!r}]", weight, least=0)
        return by_code
