"""The whole way in one call: sources, quality control, splits, control mapping, sampler, loader."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from lazypert._internal.names import unique_names
from lazypert._internal.validation import make_config, require, require_choice, require_flag, require_number
from lazypert.design.controls import STRATEGIES, ControlMappingConfig, control_mapping, control_pools
from lazypert.design.experiment import ExperimentConfig, assign_split, load_experiment_config
from lazypert.design.sentences import PerturbationBatchSampler, PerturbationSamplerConfig, SentencePlan
from lazypert.design.splits import (
    FewShotSplitter,
    FewShotSplitterConfig,
    RandomSplitter,
    RandomSplitterConfig,
    SplitResult,
    ZeroShotSplitter,
    ZeroShotSplitterConfig,
    split_by_run,
)
from lazypert.errors import ConfigError
from lazypert.loading.config import LoaderConfig
from lazypert.quality import KnockdownFilterConfig, KnockdownResult, OnTargetKnockdownFilter
from lazypert.screen.genes import JOINS
from lazypert.sources.anndata_source import PerturbationAnnDataSource
from lazypert.sources.concat_source import PerturbationConcatSource
from lazypert.sources.config import PerturbationSourceConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from lazypert.loading.config import LoaderOptions
    from lazypert.loading.loader import Loader
    from lazypert.screen.groups import Groups
    from lazypert.screen.rows import Rows
    from lazypert.sources.base import PerturbationSource

SPLIT_MODES = ("random", "zeroshot", "fewshot")


@dataclass(frozen=True, slots=True, kw_only=True)
class PerturbationPipelineConfig:
    """Options of `PerturbationPipeline`; each goes to the component of the same vocabulary.

    See `PerturbationSourceConfig`, `KnockdownFilterConfig`, the splitters' configs,
    `ControlMappingConfig` and `PerturbationSamplerConfig` for what they mean.
    """

    pert_col: str = "perturbation"
    cell_type_col: str | None = "cell_type"
    batch_col: str | None = "batch"
    control_pert: str = "non-targeting"
    output_space: str = "all"
    embedding_key: str | None = None
    hvg_col: str | None = None
    layer: str | None = None
    additional_obs: tuple[str, ...] = ()
    cache_dir: str | Path | None = None
    memory_limit: int | str = "1GiB"
    storage_options: dict[str, Any] | None = None
    join: str = "inner"

    mapping_strategy: str = "random"
    n_basal_samples: int = 1
    sentence_size: int = 512
    sentences_per_batch: int = 1

    split_mode: str = "random"
    held_out_cell_types: tuple[str, ...] = ()
    held_out_perturbations: tuple[str, ...] = ()
    train_frac: float = 0.8
    valid_frac: float = 0.1
    seed: int = 42

    enable_knockdown_filter: bool = False
    residual_expression: float = 0.30
    cell_residual_expression: float = 0.50
    min_cells: int = 30
    var_gene_col: str | None = None
    control_match: str = "all"

    def __post_init__(self) -> None:
        require_choice("split_mode", self.split_mode, SPLIT_MODES)
        require_choice("mapping_strategy", self.mapping_strategy, STRATEGIES)
        require_flag("enable_knockdown_filter", self.enable_knockdown_filter)
        wanted = {"zeroshot": "held_out_cell_types", "fewshot": "held_out_perturbations"}
        for mode, name in wanted.items():
            if mode != self.split_mode and getattr(self, name):
                raise ConfigError(
                    f"{name}: got {getattr(self, name)!r} with split_mode={self.split_mode!r}, "
                    f"expected it only with split_mode={mode!r}."
                )
        if self.batch_col is None and self.mapping_strategy == "batch":
            raise ConfigError("mapping_strategy: got 'batch' with batch_col=None, expected a batch column.")
        require_choice("join", self.join, JOINS)
        # Every component says what is wrong with its own part, now and not after the conversion.
        _ = self.source_config("unknown"), self.filter_config(), self.mapping_config(), self.sampler_config()
        _ = self.splitter()

    def source_config(self, path: str | Path) -> PerturbationSourceConfig:
        """Config of one source."""
        return PerturbationSourceConfig(
            file_path=path,
            pert_col=self.pert_col,
            cell_type_col=self.cell_type_col,
            batch_col=self.batch_col,
            control_pert=self.control_pert,
            output_space=self.output_space,
            embedding_key=self.embedding_key,
            hvg_col=self.hvg_col,
            layer=self.layer,
            additional_obs=self.additional_obs,
            cache_dir=self.cache_dir,
            memory_limit=self.memory_limit,
            seed=self.seed,
            storage_options=self.storage_options,
        )

    def filter_config(self) -> KnockdownFilterConfig:
        """Config of the knockdown filter."""
        return KnockdownFilterConfig(
            residual_expression=self.residual_expression,
            cell_residual_expression=self.cell_residual_expression,
            min_cells=self.min_cells,
            var_gene_col=self.var_gene_col,
            layer=self.layer,
            control_match=self.control_match,
        )

    def mapping_config(self) -> ControlMappingConfig:
        """Config of the control mapping."""
        return ControlMappingConfig(
            strategy=self.mapping_strategy, n_basal_samples=self.n_basal_samples, seed=self.seed
        )

    def sampler_config(self) -> PerturbationSamplerConfig:
        """Config of the training sampler."""
        return PerturbationSamplerConfig(
            sentence_size=self.sentence_size, sentences_per_batch=self.sentences_per_batch, seed=self.seed
        )

    def splitter(self) -> RandomSplitter | ZeroShotSplitter | FewShotSplitter:
        """Splitter of the chosen mode."""
        shared: dict[str, Any] = {"train_frac": self.train_frac, "valid_frac": self.valid_frac, "seed": self.seed}
        if self.split_mode == "zeroshot":
            return ZeroShotSplitter(ZeroShotSplitterConfig(held_out_cell_types=self.held_out_cell_types, **shared))
        if self.split_mode == "fewshot":
            return FewShotSplitter(FewShotSplitterConfig(held_out_perturbations=self.held_out_perturbations, **shared))
        return RandomSplitter(RandomSplitterConfig(**shared))


class PerturbationPipeline:
    """Sets up everything a training run needs, reading tables only (and, for QC, the matrix once).

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

    def setup(self, file_paths: Sequence[str | Path] | str | Path) -> PerturbationPipelineResult:
        """Open (or convert) screens, filter, split, and prepare mapping and sampler.

        Parameters
        ----------
        file_paths
            ``.h5ad`` files or stores.
        """
        if isinstance(file_paths, str) or not isinstance(file_paths, Iterable):
            file_paths = [file_paths]
        source = self._source(list(file_paths), None)
        return self._finish(source, self.config.splitter().split(source))

    def setup_experiment(self, experiment: ExperimentConfig | str | Path) -> PerturbationPipelineResult:
        """Set up the datasets and splits of a cell-load TOML file; the config's own split is not used."""
        if not isinstance(experiment, ExperimentConfig):
            experiment = load_experiment_config(experiment)
        files = [
            (name, file) for name in sorted(experiment.get_all_datasets()) for file in experiment.dataset_files(name)
        ]
        source = self._source([file for _, file in files], [name for name, _ in files])
        groups = source.groups
        # A dataset may be several files; their names carry a number that its rules know nothing of.
        owner = dict(zip(unique_names([name for name, _ in files]), (name for name, _ in files), strict=True))
        names: list[str | None] = []
        for run in range(len(groups.start)):
            label = {axis: str(groups.labels[axis][code[run]]) for axis, code in groups.codes.items()}
            if groups.ids[run] < 0:
                names.append(None)
                continue
            # A store of several files shows up as name/file; a single source as its own labels.
            inside = (name for name in owner if label["dataset"].startswith(f"{name}/"))
            dataset = owner.get(label["dataset"]) or owner.get(max(inside, key=len, default=""), files[0][0])
            names.append(
                assign_split(
                    experiment,
                    dataset,
                    label["cell_type"],
                    label["perturbation"],
                    is_control=bool(groups.is_control[run]),
                )
            )
        _check_held_out(experiment, groups)
        return self._finish(source, split_by_run(groups, names))

    def _source(self, paths: list[str | Path] | list[Path], names: list[str] | None) -> PerturbationSource:
        if not paths:
            raise ConfigError("file_paths: got an empty list, expected at least one .h5ad file or store.")
        for path in paths:
            require(isinstance(path, str | Path), "file_paths", path, "paths of .h5ad files or stores")
        sources = [PerturbationAnnDataSource(self.config.source_config(path)) for path in paths]
        if len(sources) == 1:
            return sources[0]
        return PerturbationConcatSource(sources, join=self.config.join, names=names and unique_names(names))

    def _finish(self, source: PerturbationSource, splits: SplitResult) -> PerturbationPipelineResult:
        knockdown = None
        kept = splits
        if self.config.enable_knockdown_filter:
            knockdown = OnTargetKnockdownFilter(self.config.filter_config()).run(source)
            kept = splits.keep(knockdown.mask)
        return PerturbationPipelineResult(self.config, source, splits, kept, knockdown)


def _check_held_out(experiment: ExperimentConfig, groups: Groups) -> None:
    """A label that is misspelt holds nothing out: what was meant for the test would be trained on."""
    for zero in experiment.zeroshot:
        groups.code_of("cell_type", zero.cell_type)
    for few in experiment.fewshot:
        groups.code_of("cell_type", few.cell_type)
        for label in (*few.val_perturbations, *few.test_perturbations):
            groups.code_of("perturbation", label)


class PerturbationPipelineResult:
    """What `PerturbationPipeline.setup` made. Row numbers are rows of the store.

    Attributes
    ----------
    source
        The cells.
    train_indices, valid_indices, test_indices
        `Rows` of each split, without the cells that QC dropped.
    knockdown
        What QC found, or None when it was not asked for.
    filter_mask
        (n_obs,) bool of QC, or None.
    train_sampler
        Sentence batches of places in `train_indices`.
    """

    def __init__(
        self,
        config: PerturbationPipelineConfig,
        source: PerturbationSource,
        all_splits: SplitResult,
        splits: SplitResult,
        knockdown: KnockdownResult | None,
    ) -> None:
        self.config, self.source, self.splits, self.knockdown = config, source, splits, knockdown
        self._all_splits = all_splits
        plan = SentencePlan.from_rows(
            config.sampler_config(), source.groups, splits.train_indices, by_batch=self._by_batch
        )
        self.train_sampler = PerturbationBatchSampler(config.sampler_config(), plan)

    def __repr__(self) -> str:
        return f"PerturbationPipelineResult({self.splits!r} of {self.source!r})"

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
        """(n_obs,) cells that pass knockdown QC, by store row; None when it was not asked for."""
        return None if self.knockdown is None else self.knockdown.mask

    @cached_property
    def control_mapping(self) -> NDArray[np.int64]:
        """(n_perturbed, n_basal_samples) control rows of each perturbed cell, matched within its split."""
        return control_mapping(self.config.mapping_config()).build_mapping(self.source, self._all_splits)

    def get_element(self, row: int) -> dict[str, Any]:
        """One cell by store row: counts, codes, names and one-hot vectors."""
        return self.source.element(row)

    def get_var_dims(self) -> dict[str, int]:
        """Return the sizes a model needs."""
        return self.source.get_var_dims()

    def loader(
        self,
        split: str = "train",
        *,
        sentence_size: int | None = None,
        sentences_per_batch: int | None = None,
        shuffle: bool | None = None,
        drop_last: bool = False,
        seed: int | None = None,
        shuffle_size: int | None = None,
        balance: str | None = None,
        weights: Mapping[str, float] | None = None,
        **options: Unpack[LoaderOptions],
    ) -> Loader:
        """Iterate over a split in batches of JAX arrays.

        Parameters
        ----------
        split
            ``"train"``, ``"valid"`` or ``"test"``.
        sentence_size, sentences_per_batch, seed
            By default those of the pipeline.
        shuffle
            By default only for training. Evaluation iterates over the groups in order.
        drop_last, shuffle_size, balance
            See `PerturbationSamplerConfig`.
        weights
            Share of each epoch per perturbation, ``{label: weight}``, instead of every cell once.
            Perturbations that are not named get 0.
        **options
            See `LoaderConfig`: layout, genes, normalisation, embeddings, devices, threads, memory and
            more. `n_basal_samples` is by default that of the pipeline.

        Returns
        -------
        A `Loader`; iterating over it runs through one epoch.

        Raises
        ------
        EmptyPoolError
            If a group of the split has no control.
        ConfigError
            If an option is unknown or has an invalid value.
        """
        from lazypert.loading.loader import Loader

        config = self.config
        if options.get("n_basal_samples") is None:
            options["n_basal_samples"] = config.n_basal_samples
        keywords = [name for name in inspect.signature(self.loader).parameters if name != "options"]
        loader_config = make_config(LoaderConfig, options, also=keywords)
        shuffle = split == "train" if shuffle is None else require_flag("shuffle", shuffle)
        rows = self.splits[split]
        plan_config = PerturbationSamplerConfig(
            sentence_size=config.sentence_size if sentence_size is None else sentence_size,
            sentences_per_batch=config.sentences_per_batch if sentences_per_batch is None else sentences_per_batch,
            seed=config.seed if seed is None else seed,
            drop_last=drop_last,
            balance=balance,
            **({} if shuffle_size is None else {"shuffle_size": shuffle_size}),
        )
        groups = self.source.groups
        plan = SentencePlan.from_rows(
            plan_config,
            groups,
            rows,
            by_batch=self._by_batch,
            shuffle=shuffle,
            weights=None if weights is None else self._weights(weights),
        )
        pools = control_pools(
            groups, by_batch=self._by_batch, splits=self.splits, name="valid" if split == "val" else split
        )
        if loader_config.n_basal_samples:
            pools.check(groups.run_of(rows.starts))
        return Loader(self.source, rows, plan, pools, loader_config)

    def _weights(self, weights: Mapping[str, float]) -> NDArray[np.float64]:
        """(n_perturbations,) weight of each perturbation, by code."""
        import numpy as np

        require(isinstance(weights, Mapping), "weights", weights, "a dict of numbers by perturbation")
        groups = self.source.groups
        by_code = np.zeros(len(groups.labels["perturbation"]))
        for label, weight in weights.items():
            by_code[groups.code_of("perturbation", label)] = require_number(f"weights[{label!r}]", weight, least=0)
        return by_code
