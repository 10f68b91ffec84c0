"""A lazy out-of-core engine for perturbation screens on Zarr, Dask, xarray and JAX.

Convert a screen once (`convert`), open it lazily (`open`), and train on it (`PerturbationPipeline`).
Importing lazypert loads neither JAX, matplotlib, anndata nor h5py.
"""

from lazypert import errors as errors
from lazypert.conversion.convert import convert
from lazypert.dataset import accessor as _accessor  # noqa: F401 - registers ds.pert
from lazypert.dataset.open import open as open  # noqa: A004 - named like xr.open_dataset and zarr.open
from lazypert.design.batch_sampler import PerturbationBatchSampler
from lazypert.design.controls import BatchControlMapping, ControlMappingConfig, RandomControlMapping
from lazypert.design.experiment import ExperimentConfig, load_experiment_config
from lazypert.design.sampler_config import PerturbationSamplerConfig
from lazypert.downsampling.config import DownsamplingConfig
from lazypert.errors import LazypertError
from lazypert.loading.config import LoaderConfig
from lazypert.pipeline import PerturbationPipeline, PerturbationPipelineConfig
from lazypert.pipeline_result import PerturbationPipelineResult
from lazypert.progress import Progress
from lazypert.quality import KnockdownFilterConfig, KnockdownResult, OnTargetKnockdownFilter, is_on_target_knockdown
from lazypert.sources.anndata_source import PerturbationAnnDataSource
from lazypert.sources.concat_source import PerturbationConcatSource
from lazypert.sources.config import PerturbationSourceConfig
from lazypert.splits.combinations import CombinationSplitter
from lazypert.splits.config import (
    CombinationSplitterConfig,
    FewShotSplitterConfig,
    HeldOutSplitterConfig,
    RandomSplitterConfig,
    ZeroShotSplitterConfig,
)
from lazypert.splits.held_out import HeldOutSplitter
from lazypert.splits.split_result import SplitResult
from lazypert.splits.splitters import FewShotSplitter, RandomSplitter, ZeroShotSplitter
from lazypert.store.verify import verify
from lazypert.updates.add_layer import add_layer
from lazypert.updates.add_obs import add_obs
from lazypert.updates.add_obsm import add_obsm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lazypert import plots as plots
    from lazypert import simulate as simulate
    from lazypert.downsampling.downsampler import ReadDownsampler
    from lazypert.loading.batch import PerturbationBatch, SparseRows
    from lazypert.loading.loader import Loader
    from lazypert.run_manifest import Run, load_run, save_run

    __version__: str

# JAX takes a second to import, so these are imported when they are first used.
_NEED_JAX = {
    "ReadDownsampler": "lazypert.downsampling.downsampler",
    "Loader": "lazypert.loading.loader",
    "PerturbationBatch": "lazypert.loading.batch",
    "SparseRows": "lazypert.loading.batch",
    "Run": "lazypert.run_manifest",
    "load_run": "lazypert.run_manifest",
    "save_run": "lazypert.run_manifest",
}
_SUBMODULES = ("errors", "plots", "simulate")

__all__ = [
    # stores; `open` is left out, so that a star import does not replace the built-in function
    "convert",
    "add_layer",
    "add_obs",
    "add_obsm",
    "Progress",
    "verify",
    # screens
    "PerturbationAnnDataSource",
    "PerturbationConcatSource",
    "PerturbationSourceConfig",
    # quality control
    "KnockdownFilterConfig",
    "KnockdownResult",
    "OnTargetKnockdownFilter",
    "is_on_target_knockdown",
    # splits
    "CombinationSplitter",
    "CombinationSplitterConfig",
    "FewShotSplitter",
    "FewShotSplitterConfig",
    "HeldOutSplitter",
    "HeldOutSplitterConfig",
    "RandomSplitter",
    "RandomSplitterConfig",
    "SplitResult",
    "ZeroShotSplitter",
    "ZeroShotSplitterConfig",
    # controls
    "BatchControlMapping",
    "ControlMappingConfig",
    "RandomControlMapping",
    # batches
    "DownsamplingConfig",
    "Loader",
    "LoaderConfig",
    "PerturbationBatch",
    "PerturbationBatchSampler",
    "PerturbationSamplerConfig",
    "ReadDownsampler",
    "SparseRows",
    # end-to-end pipeline
    "ExperimentConfig",
    "PerturbationPipeline",
    "PerturbationPipelineConfig",
    "PerturbationPipelineResult",
    "load_experiment_config",
    # manifests
    "Run",
    "load_run",
    "save_run",
    # errors
    "LazypertError",
]  # fmt: skip


def __getattr__(name: str) -> object:
    from importlib import import_module, metadata

    if name == "__version__":
        return metadata.version("lazypert")
    if name in _SUBMODULES:
        return import_module(f"lazypert.{name}")
    if name in _NEED_JAX:
        return getattr(import_module(_NEED_JAX[name]), name)
    raise AttributeError(f"module 'lazypert' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBMODULES, "__version__", "open"])
