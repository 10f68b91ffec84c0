"""Null screens have batch effects of the given size, and perturbations that do nothing."""

from dataclasses import replace

import anndata
import numpy as np
import pytest

from lazypert.errors import ConfigError, StoreExistsError
from lazypert.simulate import NullScreenConfig, null_screen

SIZES = (300, 500, 700)
CONFIG = NullScreenConfig(group_sizes=SIZES, n_controls=1500, n_batches=6, n_genes=60, seed=5)


@pytest.fixture(scope="module")
def screen(tmp_path_factory):
    (path,) = null_screen(tmp_path_factory.mktemp("null") / "null.h5ad", CONFIG)
    return anndata.read_h5ad(path)


def test_groups_have_the_sizes_that_were_asked_for(screen):
    assert screen.shape == (CONFIG.n_cells, 60) == (3000, 60)
    assert screen.obs["perturbation"].value_counts().to_dict() == {
        "non-targeting": 1500,
        "P1": 300,
        "P2": 500,
        "P3": 700,
    }
    assert list(screen.obs) == ["perturbation", "cell_type", "batch"]
    assert screen.obs["cell_type"].nunique() == 1
    assert screen.obs_names.is_unique
    assert (screen.X.dtype, screen.X.indices.dtype, screen.X.indptr.dtype) == (np.float32, np.int32, np.int32)


def test_cells_are_sorted_by_perturbation_and_batch(screen):
    keys = screen.obs["perturbation"].cat.codes.to_numpy() * 6 + screen.obs["batch"].cat.codes.to_numpy()
    assert (np.diff(keys) >= 0).all()


def test_batches_are_equally_likely_for_every_perturbation(screen):
    counts = screen.obs.groupby(["perturbation", "batch"], observed=False).size().unstack().to_numpy()
    expected = counts.sum(axis=1, keepdims=True) / 6
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 50  # 20 degrees of freedom: exceeded once in 4,000 screens


def test_counts_depend_on_the_batch_and_not_on_the_perturbation(screen):
    counts, batch = screen.X.toarray(), screen.obs["batch"].cat.codes.to_numpy()
    label = screen.obs["perturbation"].cat.codes.to_numpy()
    means = np.array([counts[batch == b].mean(axis=0) for b in range(6)])
    assert np.log(means).std(axis=0, ddof=1).mean() == pytest.approx(0.6, abs=0.05)
    # Within a batch, counts are Poisson: the difference between two groups has a known standard error.
    z = []
    for b in range(6):
        for other in (1, 2, 3):
            own, control = counts[(batch == b) & (label == other)], counts[(batch == b) & (label == 0)]
            error = np.sqrt(means[b] * (1 / len(own) + 1 / len(control)))
            z.append((own.mean(axis=0) - control.mean(axis=0)) / error)
    assert np.sqrt(np.mean(np.square(z))) == pytest.approx(1, abs=0.1)  # 1,080 values


def test_without_a_batch_effect_batches_are_alike(tmp_path):
    config = NullScreenConfig(group_sizes=(10,), n_controls=4000, n_batches=2, n_genes=30, batch_log_sd=0)
    (path,) = null_screen(tmp_path / "null.h5ad", config)
    data = anndata.read_h5ad(path)
    counts, batch = data.X.toarray(), data.obs["batch"].cat.codes.to_numpy()
    halves = [counts[batch == b] for b in (0, 1)]
    error = np.sqrt(counts.mean(axis=0) * sum(1 / len(half) for half in halves))
    assert np.abs((halves[0].mean(axis=0) - halves[1].mean(axis=0)) / error).max() < 4


def test_several_files_hold_the_same_cells(screen, tmp_path):
    files = null_screen([tmp_path / f"{name}.h5ad" for name in "abc"], CONFIG)
    parts = [anndata.read_h5ad(path) for path in files]
    assert min(part.n_obs for part in parts) > 800
    together = anndata.concat(parts)[screen.obs_names]
    assert (together.X != screen.X).nnz == 0
    assert together.obs["batch"].astype(str).equals(screen.obs["batch"].astype(str))


def test_the_seed_determines_the_screen(screen, tmp_path):
    (again,) = null_screen(tmp_path / "again.h5ad", CONFIG)
    (other,) = null_screen(tmp_path / "other.h5ad", replace(CONFIG, seed=6))
    assert (anndata.read_h5ad(again).X != screen.X).nnz == 0
    assert (anndata.read_h5ad(other).X != screen.X).nnz > 0


def test_an_existing_file_is_replaced_only_with_overwrite_and_all_files_or_none_are_written(tmp_path):
    small = NullScreenConfig(group_sizes=(5,), n_controls=5)
    new, old = tmp_path / "new.h5ad", tmp_path / "old.h5ad"
    old.write_bytes(b"precious")
    with pytest.raises(StoreExistsError, match="overwrite=True"):
        null_screen([new, old], small)
    assert not new.exists()
    assert old.read_bytes() == b"precious"
    assert null_screen([new, old], small, overwrite=True) == [new, old]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_sizes": ()}, "group_sizes: got .*expected a tuple"),
        ({"group_sizes": 200}, "group_sizes: got 200, expected a tuple"),
        ({"group_sizes": (200, 0)}, "group_sizes: got 0, expected an integer, 1 or more"),
        ({"n_controls": 0}, "n_controls: got 0"),
        ({"n_genes": 1}, "n_genes: got 1"),
        ({"batch_log_sd": -0.1}, "batch_log_sd: got -0.1"),
        ({"control_pert": ""}, "control_pert: got '', expected a label that"),
        ({"control_pert": "P02"}, "control_pert: got 'P02'"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ConfigError, match=message):
        NullScreenConfig(**options)


@pytest.mark.parametrize("paths", [[], ["a.h5ad", "a.h5ad"]])
def test_paths_are_checked(paths):
    with pytest.raises(ConfigError, match="one or more different files"):
        null_screen(paths)
