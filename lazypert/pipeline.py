"""End-to-end pipeline: sources, quality control, splits, control mapping, sampler, loader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack

import xarray as xr
from zarr.abc.store import Store as ZarrStore

from lazypert._internal.config import derive
from lazypert._internal.unique_names import unique_names
from lazypert._internal.validation import (
    make_config,
    named_options,
    require,
    require_choice,
    require_flag,
    require_number,
)
from lazypert.design.batch_sampler import PerturbationBatchSampler
from lazypert.design.control_coverage import control_coverage
from lazypert.design.control_policy import SplitControls, with_own_controls
from lazypert.design.control_pools import ControlPools
from lazypert.design.controls import (
    ControlMappingConfig,
    ControlOptions,
    MappingStrategy,
    control_mapping,
    match_keys,
)
from lazypert.design.experiment import ExperimentConfig, load_experiment_config
from lazypert.design.experiment_split import split_experiment
from lazypert.design.match_options import match_names
from lazypert.design.sampler_config import PerturbationSamplerConfig, SamplerOptions, SentenceOptions
from lazypert.design.sentence_plan import SentencePlan
from lazypert.errors import ConfigError
from lazypert.loading.config import LoaderConfig, LoaderOptions
from lazypert.quality import (
    KnockdownFilterConfig,
    KnockdownOptions,
    KnockdownResult,
    OnTargetKnockdownFilter,
    filter_splits,
)
from lazypert.screen.gene_alignment import JOINS, Join
from lazypert.sources.anndata_source import PerturbationAnnDataSource
from lazypert.sources.concat_source import PerturbationConcatSource
from lazypert.sources.config import PerturbationSourceConfig, ScreenOptions
from lazypert.splits.config import default_of
from lazypert.splits.names import split_name
from lazypert.splits.options import SplitOptions
from lazypert.splits.split_result import SplitResult
from lazypert.splits.splitters import make_splitter

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from lazypert.loading.loader import Loader
    from lazypert.screen.rows import Rows
    from lazypert.sources.base import PerturbationSource
    from lazypert.splits.splitter_base import Splitter


Screen: TypeAlias = str | Path | ZarrStore | xr.Dataset | PerturbationAnnDataSource

_SAMPLER_FIELDS = tuple(field.name for field in fields(PerturbationSamplerConfig))

_LOADER_ARGUMENTS = ("split", "shuffle", "weights", "control_sentences")


class PipelineLoaderOptions(SamplerOptions, LoaderOptions, total=False):
    """Options of `PerturbationPipelineResult.loader`."""


@dataclass(frozen=True, kw_only=True, repr=False)
class PerturbationPipelineConfig(KnockdownOptions, SentenceOptions, ControlOptions, SplitOptions, ScreenOptions):
    """Options of `PerturbationPipeline`: those of its components, plus a few more.

    Component options have the same names and defaults as in the components: see `PerturbationSourceConfig`,
    `KnockdownFilterConfig`, `SplitOptions`, `ControlMappingConfig` and `PerturbationSamplerConfig`.

    Parameters
    ----------
    join
        How to combine the genes of several screens: ``"inner"`` keeps those that every screen has, ``"outer"`` all.
    mapping_strategy
        The ``strategy`` of the control mapping. With ``"batch"``, each sentence also comes from a single batch.
    enable_knockdown_filter
        Remove cells that fail knockdown QC from the splits. It is an error if no perturbed cell is left to train on,
        and a warning if none is left in another split.
    """

    join: Join = "inner"
    mapping_strategy: MappingStrategy = ControlMappingConfig.strategy
    enable_knockdown_filter: bool = False

    def __post_init__(self) -> None:
        require_choice("mapping_strategy", self.mapping_strategy, MappingStrategy)
        require_flag("enable_knockdown_filter", self.enable_knockdown_filter)
        if self.batch_col is None and self.mapping_strategy == "batch":
            raise ConfigError(
                "mapping_strategy: got 'batch' with batch_col=None, expected a batch column. "
                "Name one, or use mapping_strategy='random'."
            )
        require_choice("join", self.join, JOINS)
        object.__setattr__(self, "match", match_names(self.match, self.fallback))
        # Components check their own options: trigger that now, not after the conversion.
        _ = self.source_config("unknown"), self.filter_config(), self.mapping_config(), self.sampler_config()
        _ = self.splitter()

    def source_config(self, path: str | Path | ZarrStore) -> PerturbationSourceConfig:
        """Config of one source."""
        return derive(PerturbationSourceConfig, self, file_path=path)

    def filter_config(self) -> KnockdownFilterConfig:
        """Config of the knockdown filter."""
        return derive(KnockdownFilterConfig, self)

    def mapping_config(self) -> ControlMappingConfig:
        """Config of the control mapping."""
        return derive(ControlMappingConfig, self, strategy=self.mapping_strategy)

    def sampler_config(self) -> PerturbationSamplerConfig:
        """Config of the training sampler."""
        return derive(PerturbationSamplerConfig, self)

    def splitter(self) -> Splitter[Any]:
        """Splitter of the chosen mode."""
        # The separator is also an option of the screen, which every mode has.
        separator = self.separator if self.split_mode == "combinations" else None
        return make_splitter(derive(SplitOptions, self, separator=separator))


class PerturbationPipeline:
    """Set up everything that a training run needs; reads only tables, and the matrix once for QC.

    Examples
    --------
    >>> from lazypert import PerturbationPipeline, PerturbationPipelineConfig
    >>> pipeline = PerturbationPipeline(PerturbationPipelineConfig(
    ...     split_mode="fewshot", held_out_perturbations=("BRCA1", "TP53"),
    ...     enable_knockdown_filter=True, var_gene_col="gene_name"))
    >>> result = pipeline.setup(["screen.h5ad"])  # doctest: +SKIP
    >>> for batch in result.loader("train", sentence_size=64, sentences_per_batch=8):  # doctest: +SKIP
    ...     batch.counts, batch.controls
    """

    def __init__(self, config: PerturbationPipelineConfig) -> None:
        self.config = config

    def __repr__(self) -> str:
        return f"PerturbationPipeline({self.config!r})"

    @named_options
    def setup(
        self,
        file_paths: Sequence[Screen] | Screen,
        *,
        splits: SplitResult | str | Path | None = None,
        names: Sequence[str] | None = None,
    ) -> PerturbationPipelineResult:
        """Open or convert screens, filter and split their cells, and prepare the control mapping and the sampler.

        Parameters
        ----------
        file_paths
            ``.h5ad`` files or stores; or Datasets from `lazypert.open`, or selections of their cells, which are then
            the only cells that are used; or sources, which have their own roles.
        splits
            A split of the same cells, made for this or another opening of them, or the file of a saved one. By
            default, the config says how to split.
        names
            Names of the datasets, if there are several screens; by default, the stems of their files.

        Raises
        ------
        ConfigError
            If `splits` has other cells, or is given together with options of another split.
        """
        if isinstance(file_paths, Screen) or not isinstance(file_paths, Iterable):
            file_paths = [file_paths]
        if splits is not None:
            self._refuse_split_options()
        source = self._source(list(file_paths), None if names is None else list(names))
        if splits is None:
            return self._finish(source, self.config.splitter().split(source))
        require(isinstance(splits, str | Path | SplitResult), "splits", splits, "a SplitResult, or the file of one")
        given = SplitResult.load(splits, source) if isinstance(splits, str | Path) else splits.move_to(source)
        return self._finish(source, given, is_split_given=True)

    def _refuse_split_options(self) -> None:
        for name in SplitOptions.__dataclass_fields__:
            value = getattr(self.config, name)
            if name not in ("seed", "separator") and value != default_of(SplitOptions, name):
                raise ConfigError(
                    f"{name}: got {value!r} together with splits=..., expected only one of them. Leave out the options "
                    "of the split in the config."
                )

    @named_options
    def setup_experiment(self, experiment: ExperimentConfig | str | Path) -> PerturbationPipelineResult:
        """Set up the datasets and splits of a cell-load TOML file; ignores the config's own split.

        Raises
        ------
        ConfigError
            If the experiment matches controls by other keys than the config, or with another fallback.
        """
        if not isinstance(experiment, ExperimentConfig):
            experiment = load_experiment_config(experiment)
        config = _with_match_of(experiment, self.config)
        files = [
            (name, file) for name in sorted(experiment.get_all_datasets()) for file in experiment.dataset_files(name)
        ]
        datasets = [name for name, _ in files]
        roles = [experiment.dataset_roles(name) for name in datasets]
        source = self._source([path for _, path in files], datasets, roles)
        # A dataset may have several files, which then get numbered names.
        owners = dict(zip(unique_names(datasets), datasets, strict=True))
        splits = split_experiment(experiment, source.groups, owners)
        return PerturbationPipeline(config)._finish(source, splits, is_split_given=True)

    def _source(
        self, paths: Sequence[Screen], names: list[str] | None, roles: Sequence[Mapping[str, Any]] | None = None
    ) -> PerturbationSource:
        if not paths:
            raise ConfigError("file_paths: got an empty list, expected at least one .h5ad file or store.")
        for path in paths:
            expected = "paths of .h5ad files or stores, Datasets from lazypert.open, or sources"
            require(isinstance(path, Screen), "file_paths", path, expected)
        roles = [{}] * len(paths) if roles is None else roles
        sources = [self._open(path, own, is_only=len(paths) == 1) for path, own in zip(paths, roles, strict=True)]
        if len(sources) == 1:
            return sources[0]
        return PerturbationConcatSource(sources, join=self.config.join, names=names and unique_names(names))

    def _open(self, screen: Screen, roles: Mapping[str, Any], *, is_only: bool) -> PerturbationAnnDataSource:
        if isinstance(screen, PerturbationAnnDataSource):
            return screen
        if isinstance(screen, xr.Dataset):
            source: PerturbationAnnDataSource = screen.pert.selected_source(self.config)
            return source
        config = replace(self.config.source_config(screen), **roles)
        return PerturbationAnnDataSource(config, all_controls=is_only)

    def _finish(
        self, source: PerturbationSource, original: SplitResult, *, is_split_given: bool = False
    ) -> PerturbationPipelineResult:
        splits, knockdown = original, None
        if self.config.controls == "disjoint":
            splits = with_own_controls(source.groups, splits, self.config.seed)
        if self.config.enable_knockdown_filter:
            knockdown = OnTargetKnockdownFilter(self.config.filter_config()).run(source)
        result = PerturbationPipelineResult(self.config, source, splits, knockdown)
        result.original_splits, result.is_split_given = original, is_split_given
        return result


def _with_match_of(experiment: ExperimentConfig, config: PerturbationPipelineConfig) -> PerturbationPipelineConfig:
    """The config with the keys of an experiment, if it has some."""
    if experiment.match is None:
        return config
    own, given = (config.match, config.fallback), (experiment.match, experiment.fallback)
    if config.match is not None and own != given:
        raise ConfigError(
            f"match, fallback: got {own[0]!r} and {own[1]!r} in the config, but {given[0]!r} and {given[1]!r} in "
            "[controls] of the experiment, expected them in one place. Leave them out of one."
        )
    return replace(config, match=experiment.match, fallback=experiment.fallback)


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
