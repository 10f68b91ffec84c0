"""End-to-end pipeline: sources, quality control, splits, control mapping, sampler, loader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import xarray as xr
from zarr.abc.store import Store as ZarrStore

from lazypert._internal.config import derive
from lazypert._internal.unique_names import unique_names
from lazypert._internal.validation import (
    named_options,
    require,
    require_choice,
    require_flag,
)
from lazypert.design.control_policy import with_own_controls
from lazypert.design.controls import (
    ControlMappingConfig,
    ControlOptions,
    MappingStrategy,
)
from lazypert.design.experiment import ExperimentConfig, load_experiment_config
from lazypert.design.experiment_split import split_experiment
from lazypert.design.match_options import match_names
from lazypert.design.sampler_config import PerturbationSamplerConfig, SentenceOptions
from lazypert.errors import ConfigError
from lazypert.pipeline_result import PerturbationPipelineResult
from lazypert.quality import (
    KnockdownFilterConfig,
    KnockdownOptions,
    OnTargetKnockdownFilter,
)
from lazypert.screen.gene_alignment import JOINS, Join
from lazypert.sources.anndata_source import PerturbationAnnDataSource
from lazypert.sources.concat_source import PerturbationConcatSource
from lazypert.sources.config import PerturbationSourceConfig, ScreenOptions
from lazypert.splits.config import default_of
from lazypert.splits.options import SplitOptions
from lazypert.splits.split_result import SplitResult
from lazypert.splits.splitters import make_splitter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lazypert.sources.base import PerturbationSource
    from lazypert.splits.splitter_base import Splitter


Screen: TypeAlias = str | Path | ZarrStore | xr.Dataset | PerturbationAnnDataSource


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

    def source_config(self, path: str | Path) -> PerturbationSourceConfig:
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
        is_one = isinstance(file_paths, str | ZarrStore | xr.Dataset | PerturbationAnnDataSource)
        if is_one or not isinstance(file_paths, Iterable):
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
