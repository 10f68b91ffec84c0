"""Loaders over small screens, and helpers to compare their batches."""

import threading

import jax
import numpy as np

from lazypert import FewShotSplitter, FewShotSplitterConfig, PerturbationAnnDataSource, PerturbationSourceConfig
from lazypert.design.control_pools import control_pools
from lazypert.design.sampler_config import PerturbationSamplerConfig
from lazypert.design.sentence_plan import SentencePlan
from lazypert.loading.config import LoaderConfig
from lazypert.loading.loader import Loader

# Fields of a batch without optional ones.
FIELDS = ["counts", "controls", "pert_code", "cell_type_code", "batch_code", "dataset_code"]
FIELDS += ["is_control", "is_padding", "row", "control_row"]


def loader_of(
    source,
    split="train",
    *,
    sentence_size=7,
    sentences_per_batch=4,
    n_basal_samples=2,
    shuffle=True,
    by_batch=True,
    shuffle_size=4096,
    **options,
):
    """A loader of one split, with small sentences unless asked otherwise."""
    splits = FewShotSplitter(FewShotSplitterConfig(held_out_perturbations=("MYC",))).split(source)
    config = PerturbationSamplerConfig(
        sentence_size=sentence_size, sentences_per_batch=sentences_per_batch, shuffle_size=shuffle_size
    )
    plan = SentencePlan.from_rows(config, source.groups, splits[split], by_batch=by_batch, shuffle=shuffle)
    pools = control_pools(source.groups, by_batch=by_batch, splits=splits, name=split)
    return Loader(source, splits[split], plan, pools, LoaderConfig(n_basal_samples=n_basal_samples, **options))


def whole_loader(path, **source_options):
    """A function that makes loaders over all cells of a file, in batches of 2 x 4 cells with 2 controls each."""
    source = PerturbationAnnDataSource(PerturbationSourceConfig(file_path=path, **source_options))
    rows = source.groups.rows(source.groups.ids >= 0)
    plan = SentencePlan.from_rows(
        PerturbationSamplerConfig(sentence_size=4, sentences_per_batch=2), source.groups, rows
    )
    pools = control_pools(source.groups, by_batch=False)

    def make(*, n_basal_samples=2, **options):
        return Loader(source, rows, plan, pools, LoaderConfig(n_basal_samples=n_basal_samples, **options))

    make.source = source
    return make


def loader_threads():
    """Names of the background threads that are alive."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lazypert-loader")]


def same_batch(one, other):
    """Whether two batches are bit-identical."""
    leaves, other_leaves = (jax.tree.leaves(batch) for batch in (one, other))
    return len(leaves) == len(other_leaves) and all(
        a.dtype == b.dtype and (np.asarray(a) == np.asarray(b)).all() for a, b in zip(leaves, other_leaves, strict=True)
    )
