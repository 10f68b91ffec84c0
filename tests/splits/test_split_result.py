"""A split is a value: it compares, pickles, and becomes a column of a Dataset."""

import pickle

import numpy as np
import pandas as pd
import pytest

import lazypert as lp
from lazypert.errors import ConfigError
from lazypert.splits.names import SPLITS
from tests.support.screens import source_of


@pytest.fixture(scope="module")
def ds(reference):
    return lp.open(reference.store)


def test_pickles_with_its_cells(ds):
    split = ds.pert.split("heldout", by="cell_type", test=("Neuron",))
    loaded = pickle.loads(pickle.dumps(split))
    assert loaded == split
    assert loaded.rule.config == split.rule.config
    assert loaded.test_indices[:].tolist() == split.test_indices[:].tolist()


def expected_column(split, rows):
    names = np.full(900, "", dtype=object)
    for name in SPLITS:
        names[np.asarray(split[name])] = name
    return names[rows].tolist()


def test_as_column_of_any_selection(ds):
    split = ds.pert.split("random", exclude_perturbations=("MYC",))
    for selection in (ds, ds.isel(cell=slice(100, 300)), ds.isel(cell=np.random.default_rng(0).permutation(900)[:50])):
        column = split.as_column(selection)
        assert column.dims == ("cell",)
        assert column.values.tolist() == expected_column(split, selection.store_row.values)
    with_split = ds.assign_coords(split=split.as_column(ds))
    assert with_split.isel(cell=with_split.split == "test").store_row.values.tolist() == sorted(split.test_indices)
    counts = with_split.total_counts.groupby("split").count()
    assert dict(zip(counts["split"].values, counts.values, strict=True)) == {
        "": 150,
        **{name: len(split[name]) for name in SPLITS},
    }


def test_as_column_in_the_order_of_the_file(reference, tmp_path):
    source = source_of(reference.adata.copy(), tmp_path, order="source")
    other = lp.open(source.store.path)
    split = other.pert.split()
    assert split.as_column(other).values.tolist() == expected_column(split, np.arange(900))
    assert split == lp.open(reference.store).pert.split()
    with pytest.raises(ConfigError, match="a Dataset of other cells"):
        split.as_column(lp.open(reference.store))


def test_a_selection_is_split_on_its_own(ds):
    selection = ds.pert.select(cell_type=["Neuron", "Microglia"])
    split = selection.pert.split("heldout", by="perturbation", test=0.2, valid=0.2)
    rows = sorted(np.concatenate([split[name][:] for name in SPLITS]))
    assert rows == sorted(selection.store_row.values)
    assert split.as_column(ds).values.tolist() == expected_column(split, np.arange(900))


def test_a_saved_selection_loads_into_the_whole(ds, tmp_path):
    split = ds.isel(cell=slice(0, 200)).pert.split()
    split.save(tmp_path / "part.csv")
    loaded = lp.SplitResult.load(tmp_path / "part.csv", ds.pert)
    assert loaded == split
    assert loaded.n_in_no_split == 700
    with pytest.raises(ConfigError, match="cells that the screen lacks"):
        lp.SplitResult.load(tmp_path / "part.csv", ds.isel(cell=slice(0, 100)).pert)


def test_obs_of_a_dataset_is_a_table(ds, reference):
    obs = reference.adata.obs.assign(split=np.array(SPLITS)[np.arange(900) % 3])
    split = lp.SplitResult.from_table(ds.pert, obs)
    assert [len(split[name]) for name in SPLITS] == [300, 300, 300]
    frame = pd.DataFrame({"n": np.arange(900), "split": obs["split"].to_numpy(), "barcode": obs.index})
    assert lp.SplitResult.from_table(ds.pert, frame, cell="barcode") == split
