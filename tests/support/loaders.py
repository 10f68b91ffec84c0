"""Loaders over small screens."""

from functools import partial

from lazypert import FewShotSplitter, FewShotSplitterConfig, PerturbationAnnDataSource, PerturbationSourceConfig
from lazypert.design.control_pools import control_pools
from lazypert.design.sentences import PerturbationSamplerConfig, SentencePlan
from lazypert.loading.loader import Loader


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
    splits = FewShotSplitter(FewShotSplitterConfig(held_out_perturbations=("MYC",))).split(source)
    config = PerturbationSamplerConfig(
        sentence_size=sentence_size, sentences_per_batch=sentences_per_batch, shuffle_size=shuffle_size
    )
    plan = SentencePlan.from_rows(config, source.groups, splits[split], by_batch=by_batch, shuffle=shuffle)
    pools = control_pools(source.groups, by_batch=by_batch, splits=splits, name=split)
    return Loader(source, splits[split], plan, pools, n_basal_samples=n_basal_samples, **options)


def whole_loader(path):
    """Make loaders over all cells of a file, four of a group a sentence."""
    source = PerturbationAnnDataSource(PerturbationSourceConfig(file_path=path))
    rows = source.groups.rows(source.groups.ids >= 0)
    plan = SentencePlan.from_rows(
        PerturbationSamplerConfig(sentence_size=4, sentences_per_batch=2), source.groups, rows
    )
    pools = control_pools(source.groups, by_batch=False)
    make = partial(Loader, source, rows, plan, pools, n_basal_samples=2)
    make.source = source
    return make
