"""The same cells and seed give the same splits, however the screen was stored, converted and opened."""

import numpy as np
import pytest

import lazypert as lp
from lazypert import (
    CombinationSplitter,
    CombinationSplitterConfig,
    FewShotSplitter,
    FewShotSplitterConfig,
    HeldOutSplitter,
    HeldOutSplitterConfig,
    PerturbationAnnDataSource,
    PerturbationConcatSource,
    PerturbationSourceConfig,
    RandomSplitter,
    RandomSplitterConfig,
    ZeroShotSplitter,
    ZeroShotSplitterConfig,
)
from lazypert.splits.names import SPLITS
from tests.support.screens import CONTROL, make_screen, write_screen

SPLITTERS = {
    "random": RandomSplitter(RandomSplitterConfig(seed=5)),
    "folds": RandomSplitter(RandomSplitterConfig(n_folds=4, fold=2)),
    "strata": RandomSplitter(RandomSplitterConfig(stratify_by=("donor",))),
    "cell types": ZeroShotSplitter(ZeroShotSplitterConfig(held_out_cell_types=("T",))),
    "perturbations": FewShotSplitter(FewShotSplitterConfig(held_out_perturbations=("A",), val_subsample_fraction=0.5)),
    "fractions": HeldOutSplitter(HeldOutSplitterConfig(by="perturbation", test=0.4, valid=0.2)),
    "pairs": HeldOutSplitter(HeldOutSplitterConfig(by=("cell_type", "perturbation"), test=0.3, valid=0.1)),
    "donors": HeldOutSplitter(HeldOutSplitterConfig(by="donor", test=0.4)),
    "combinations": CombinationSplitter(CombinationSplitterConfig(separator="+", test=("A",))),
}


@pytest.fixture(scope="module")
def adata():
    rng, n = np.random.default_rng(0), 1500
    labels = np.array([CONTROL, "A", "B", "C", "D", "E", "A+B", "C+D"], dtype=object)
    return make_screen(
        {
            "perturbation": labels[rng.integers(0, len(labels), n)].tolist(),
            "cell_type": np.array(["T", "U", "V"])[rng.integers(0, 3, n)].tolist(),
            "batch": np.array(["b1", "b2", "b3"])[rng.integers(0, 3, n)].tolist(),
            "donor": np.array(["x", "y", "z"])[rng.integers(0, 3, n)].tolist(),
        },
        rng.poisson(1.0, (n, 4)),
    )


ROLES = {"pert_col": "perturbation", "cell_type_col": "cell_type", "batch_col": "batch"}


def source_of(path, **roles):
    roles = ROLES | roles
    store = lp.convert(path, path.with_suffix(".zarr"), control_pert=CONTROL, **roles)
    return PerturbationAnnDataSource(PerturbationSourceConfig(file_path=store, **roles))


def as_it_is(adata, folder):
    return source_of(write_screen(adata, folder / "plain.h5ad"))


def shuffled(adata, folder):
    order = np.random.default_rng(1).permutation(adata.n_obs)
    return source_of(write_screen(adata[order].copy(), folder / "shuffled.h5ad"))


def without_batches(adata, folder):
    return source_of(write_screen(adata, folder / "unbatched.h5ad"), batch_col=None)


def with_donors_as_batches(adata, folder):
    return source_of(write_screen(adata, folder / "donors.h5ad"), batch_col="donor")


def in_the_order_of_the_file(adata, folder):
    path = write_screen(adata, folder / "source_order.h5ad")
    store = lp.convert(path, folder / "source_order.zarr", order="source", control_pert=CONTROL, **ROLES)
    return PerturbationAnnDataSource(PerturbationSourceConfig(file_path=store, **ROLES))


def grouped_by_other_columns(adata, folder):
    path = write_screen(adata, folder / "regrouped.h5ad")
    store = lp.convert(path, folder / "regrouped.zarr", pert_col="donor", batch_col="cell_type")
    return PerturbationAnnDataSource(PerturbationSourceConfig(file_path=store, **ROLES))


def in_little_memory(adata, folder):
    path = write_screen(adata, folder / "small.h5ad")
    with pytest.warns(FutureWarning, match="seed"):
        store = lp.convert(path, folder / "small.zarr", memory_limit="64MiB", seed=3, control_pert=CONTROL, **ROLES)
    return PerturbationAnnDataSource(PerturbationSourceConfig(file_path=store, **ROLES))


def in_two_files_of_one_store(adata, folder):
    half = np.random.default_rng(2).random(adata.n_obs) < 0.5
    paths = [write_screen(adata[part].copy(), folder / f"part{part[0]:d}.h5ad") for part in (half, ~half)]
    store = lp.convert(paths, folder / "parts.zarr", control_pert=CONTROL, **ROLES)
    return PerturbationAnnDataSource(PerturbationSourceConfig(file_path=store, **ROLES))


def in_three_stores(adata, folder):
    part = np.random.default_rng(3).integers(0, 3, adata.n_obs)
    paths = [write_screen(adata[part == i].copy(), folder / f"third{i}.h5ad") for i in range(3)]
    return PerturbationConcatSource([source_of(path) for path in paths])


VARIANTS = [
    shuffled,
    without_batches,
    with_donors_as_batches,
    in_the_order_of_the_file,
    grouped_by_other_columns,
    in_little_memory,
    in_two_files_of_one_store,
    in_three_stores,
]


@pytest.fixture(scope="module")
def original(adata, tmp_path_factory):
    return as_it_is(adata, tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda variant: variant.__name__)
def variant(request, adata, tmp_path_factory):
    return request.param(adata, tmp_path_factory.mktemp("variant"))


def names_by_split(source, splitter):
    split = splitter.split(source)
    return {name: set(source.obs_names(np.asarray(split[name]))) for name in SPLITS}


@pytest.mark.parametrize("splitter", SPLITTERS.values(), ids=SPLITTERS)
def test_each_split_has_the_same_cells(original, variant, splitter):
    expected = names_by_split(original, splitter)
    assert sum(map(len, expected.values())) > 700
    assert names_by_split(variant, splitter) == expected
