"""lazypert: a lazy out-of-core engine for perturbation screens on Zarr, Dask, xarray and JAX.

Convert a screen once (`convert`), open it lazily (`open`), and train on it
(`PerturbationPipeline`). Importing lazypert loads neither JAX, matplotlib, anndata nor h5py.
"""

from lazypert import accessor as _accessor  # noqa: F401 - registers ds.pert
from lazypert.concat import PerturbationConcatSource
from lazypert.controls import BatchControlMapping, ControlMappingConfig, RandomControlMapping
from lazypert.dataset import open  # noqa: A004 - lp.open is the door, as xr.open_dataset and zarr.open are
from lazypert.errors import LazypertError
from lazypert.experiment import ExperimentConfig, load_experiment_config
from lazypert.ingest import convert
from lazypert.pipeline import PerturbationPipeline, PerturbationPipelineConfig, PerturbationPipelineResult
from lazypert.qc import KnockdownFilterConfig, KnockdownResult, OnTargetKnockdownFilter, is_on_target_knockdown
from lazypert.sampler import PerturbationBatchSampler, PerturbationSamplerConfig
from lazypert.source import PerturbationAnnDataSource, PerturbationSourceConfig
from lazypert.splits import (
    FewShotSplitter,
    FewShotSplitterConfig,
    RandomSplitter,
    RandomSplitterConfig,
    SplitResult,
    ZeroShotSplitter,
    ZeroShotSplitterConfig,
)
from lazypert.verify import verify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lazypert.batches import PerturbationBatch, SparseRows
    from lazypert.downsampling import DownsamplingConfig, ReadDownsampler
    from lazypert.loader import Loader

# These need JAX, which takes a second to import; they come when they are first named.
_NEED_JAX = {
    "DownsamplingConfig": "lazypert.downsampling",
    "ReadDownsampler": "lazypert.downsampling",
    "Loader": "lazypert.loader",
    "PerturbationBatch": "lazypert.batches",
    "SparseRows": "lazypert.batches",
}

__all__ = [
    # stores
    "convert",
    "open",
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
    "FewShotSplitter",
    "FewShotSplitterConfig",
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
    "PerturbationBatch",
    "PerturbationBatchSampler",
    "PerturbationSamplerConfig",
    "ReadDownsampler",
    "SparseRows",
    # the whole way
    "ExperimentConfig",
    "PerturbationPipeline",
    "PerturbationPipelineConfig",
    "PerturbationPipelineResult",
    "load_experiment_config",
    # errors
    "LazypertError",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name in _NEED_JAX:
        from importlib import import_module

        return getattr(import_module(_NEED_JAX[name]), name)
    raise AttributeError(f"module 'lazypert' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
