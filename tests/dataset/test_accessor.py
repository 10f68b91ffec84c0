"""ds.pert uses rows of the store, for a complete Dataset and for any selection of its cells."""

import pickle
from dataclasses import fields

import fsspec
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from fsspec.implementations.local import LocalFileSystem

import lazypert as lp
from lazypert import PerturbationPipeline, PerturbationPipelineConfig, RandomSplitter, RandomSplitterConfig
from lazypert.design.controls import ControlMappingConfig, ControlMappingKwargs
from lazypert.errors import ConfigError, LabelNotFoundError
from lazypert.quality import KnockdownFilterConfig, KnockdownFilterKwargs
from lazypert.screen.roles import Roles, RolesKwargs
from lazypert.sources.config import PerturbationSourceConfig, PerturbationSourceKwargs
from lazypert.splits.options import SplitKwargs, SplitOptions
from lazypert.store.store import Store
from tests.support.sampling import sampled
from tests.support.stores import (
    ROLES,
    converted,
    read_store,
    screen,
)


@pytest.fixture(scope="module", params=["grouped", "source"])
def made(request, tmp_path_factory):
    _, store = converted(tmp_path_factory.mktemp(f"accessor_{request.param}"), order=request.param)
    return lp.open(store), read_store(store).obs


def rows_of(ds):
    return ds.store_row.values


def test_the_table_counts_cells_by_group(made):
    ds, obs = made
    table = ds.pert.table().set_index(["cell_type", "perturbation"])
    naive = obs.groupby(["cell_type", "perturbation"], observed=True)
    assert table["n_cells"].to_dict() == naive.size().to_dict()
    assert table["n_batches"].to_dict() == naive["batch"].nunique().to_dict()
    assert {p for (_, p), flag in table["is_control"].items() if flag} == {"non-targeting"}


@pytest.mark.parametrize(
    ("wanted", "naive"),
    [
        ({"perturbation": "TP53"}, lambda o: o.perturbation == "TP53"),
        (
            {"perturbation": ["TP53", "BRCA1"], "batch": "b1"},
            lambda o: o.perturbation.isin(["TP53", "BRCA1"]) & (o.batch == "b1"),
        ),
        ({"cell_type": "Neuron"}, lambda o: o.cell_type == "Neuron"),
        ({"controls": True}, lambda o: o.perturbation == "non-targeting"),
        ({"controls": False, "batch": ["b2"]}, lambda o: (o.perturbation != "non-targeting") & (o.batch == "b2")),
        ({}, lambda o: o.batch.notna()),
        (
            {"perturbation": ["TP53", "non-targeting"], "controls": True},
            lambda o: o.perturbation == "non-targeting",
        ),
    ],
    ids=["one", "several-and-batch", "cell_type", "controls", "others-of-a-batch", "all", "controls-by-name"],
)  # fmt: skip
def test_select_equals_pandas(made, wanted, naive):
    ds, obs = made
    expected = np.flatnonzero(naive(obs).to_numpy())
    assert rows_of(ds.pert.select(**wanted)).tolist() == expected.tolist()
    shuffled = ds.isel(cell=np.random.default_rng(0).permutation(90)[:60])
    found = rows_of(shuffled.pert.select(**wanted)) if len(expected) else []
    assert list(found) == [row for row in rows_of(shuffled) if row in set(expected)]


def test_controls_and_perturbations_that_exclude_each_other_are_refused(made):
    ds, _ = made
    advice = r"controls: got True with perturbation='TP53'.*perturbation=\['TP53', 'non-targeting'\]"
    with pytest.raises(ConfigError, match=advice):
        ds.pert.select(perturbation="TP53", controls=True)
    with pytest.raises(ConfigError, match=r"controls: got False with perturbation='non-targeting', which are controls"):
        ds.pert.select(perturbation="non-targeting", controls=False)
    assert set(ds.pert.select(perturbation=["TP53", "non-targeting"]).perturbation.values) == {"TP53", "non-targeting"}


@pytest.mark.parametrize("axis", ["perturbation", "cell_type", "batch"])
def test_an_unknown_label_raises_with_near_matches(made, axis):
    known = {"perturbation": "TP53", "cell_type": "Neuron", "batch": "b1"}[axis]
    with pytest.raises(LabelNotFoundError, match=f"Did you mean '{known}'"):
        made[0].pert.select(**{axis: known.swapcase() + "x"})
    with pytest.raises(ConfigError, match=f"{axis}: got 3, expected a label"):
        made[0].pert.select(**{axis: 3})


def test_obs_takes_names_in_their_order(made):
    assert list(made[0].pert.obs(["batch", "perturbation"])) == ["batch", "perturbation"]
    with pytest.raises(ConfigError, match="expected a list of names"):
        made[0].pert.obs({"batch"})


def test_a_selection_uses_rows_of_the_store(made):
    ds, obs = made
    selection = ds.isel(cell=np.r_[85:0:-2, 2:40:2])
    selected = set(rows_of(selection).tolist())
    table = selection.pert.table().set_index(["cell_type", "perturbation"])["n_cells"]
    naive = obs.iloc[sorted(selected)].groupby(["cell_type", "perturbation"], observed=True).size()
    assert table.to_dict() == naive.to_dict()
    splits = selection.pert.split("random", seed=3)
    split_rows = np.concatenate([np.asarray(splits[name]) for name in ("train", "valid", "test")])
    assert sorted(split_rows.tolist()) == sorted(selected)
    mapping = selection.pert.match_controls(n_basal_samples=4)
    assert set(mapping.ravel().tolist()) <= {r for r in selected if obs["perturbation"].iloc[r] == "non-targeting"}


ROLE_VALUES = {
    "text": [f"r{i % 3}" for i in range(90)],
    "ints": np.arange(90) % 3 + 9,
    "floats": np.array([0.1, 2.5, 10.0])[np.arange(90) % 3],
    "float32": np.array([0.1, 2.5, 10.0], "f4")[np.arange(90) % 3],
    "bools": np.arange(90) % 2 == 0,
    "nullable_ints": pd.array([None if i % 5 == 0 else i % 3 + 9 for i in range(90)], dtype="Int64"),
    "nullable_bools": pd.array([None if i % 5 == 0 else i % 2 == 0 for i in range(90)], dtype="boolean"),
    "categorical_ints": pd.Categorical(np.arange(90) % 3 + 9),
    "unused_categories": pd.Categorical([f"r{i % 3}" for i in range(90)], categories=["a", "r0", "r1", "r2", "z"]),
    "missing": pd.Categorical([None if i % 5 == 0 else f"r{i % 3}" for i in range(90)]),
}


@pytest.mark.parametrize("order", ["grouped", pytest.param("source", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", sampled(ROLE_VALUES))
def test_role_columns_of_any_kind_group_complete_and_selected_cells_alike(tmp_path, kind, order):
    adata = screen(lean=True)
    adata.obs["batch"] = ROLE_VALUES[kind]
    _, store = converted(tmp_path, adata, order=order)
    ds, obs = lp.open(store), read_store(store).obs
    selection = ds.isel(cell=slice(1, None))
    for dataset, rows in ((ds, obs), (selection, obs.iloc[1:])):
        groups = dataset.pert.groups
        for label in groups.labels["batch"]:
            chosen = dataset.pert.select(batch=str(label))
            values = chosen.batch.values
            assert len(set(values.tolist())) == 1
            assert chosen.sizes["cell"] == (rows["batch"] == values[0]).sum()
        counts = groups.batch_counts
        assert sorted(counts.n_cells[counts.batch >= 0].tolist()) == sorted(
            rows.groupby(["cell_type", "perturbation", "batch"], observed=True).size().tolist()
        )


def test_cells_can_be_regrouped_by_another_column(made):
    ds, obs = made
    groups = ds.pert.regroup(pert_col="text", control_pert="sgA")
    assert set(groups.labels["perturbation"]) == {"sgA", "sgB", "", "é漢"}
    assert groups.sizes[groups.is_control].sum() == (obs["text"] == "sgA").sum()
    with pytest.raises(KeyError, match="Did you mean 'text'"):
        ds.pert.regroup(pert_col="txet")


def test_labels_assigned_in_place_of_the_stores_are_refused(made):
    ds, obs = made
    assigned = ds.assign_coords(perturbation=("cell", np.full(len(obs), "none")))
    for selection in (assigned, assigned.isel(cell=slice(3, 50))):
        with pytest.raises(ConfigError, match=r"'perturbation' assigned .*another name.*regroup"):
            selection.pert.table()
        with pytest.raises(ConfigError, match="'perturbation' assigned"):
            selection.pert.split()
        with pytest.raises(ConfigError, match="'perturbation' assigned"):
            PerturbationPipeline(PerturbationPipelineConfig()).setup(selection)
    other = ds.assign_coords(mine=("cell", np.arange(len(obs)))).rename(perturbation="guide")
    pd.testing.assert_frame_equal(other.pert.table(), ds.pert.table())


def test_knockdown_refuses_cells_without_targets_and_repeated_cells(made):
    ds, _ = made
    with pytest.raises(ConfigError, match="0 of 3 targets are in the var index"):
        ds.pert.select(cell_type="Neuron").pert.knockdown()
    with pytest.raises(ConfigError, match="more than once"):
        ds.isel(cell=[0, 0]).pert.knockdown()


def test_other_datasets_raise(made):
    with pytest.raises(ConfigError, match=r"lazypert\.open"):
        xr.Dataset({"a": ("x", [1])}).pert.table()
    with pytest.raises(ConfigError, match="attribute"):
        made[0].drop_attrs().pert.table()


def test_an_unknown_split_mode_raises(made):
    with pytest.raises(ConfigError, match="mode: got 'other', expected one of 'random', 'zeroshot', 'fewshot'"):
        made[0].pert.split("other")
    assert ROLES["pert_col"] == made[0].attrs["pert_col"]


def test_a_cell_that_is_selected_twice_cannot_be_split(made):
    ds, _ = made
    twice = ds.isel(cell=[*range(ds.sizes["cell"]), 3])
    for split in (twice.pert.split, lambda: RandomSplitter(RandomSplitterConfig()).split(twice)):
        with pytest.raises(ConfigError, match=r"got a selection of 91 cells, of which 90 are distinct"):
            split()
    reordered = ds.isel(cell=slice(None, None, -1))
    assert reordered.pert.split() == ds.pert.split()


def test_splits_of_any_mode(made):
    ds, obs = made
    split = ds.pert.split("heldout", by="ordered", test=("low",), seed=1)
    assert sorted(split.test_indices) == np.flatnonzero(obs["ordered"] == "low").tolist()
    with pytest.raises(ConfigError, match=r"held_out_cell_types: got \('Neuron',\) with mode 'random'.*'zeroshot'"):
        ds.pert.split(held_out_cell_types=("Neuron",))
    with pytest.raises(ConfigError, match=r"held_out_cell_types: got \(\) with mode 'random'"):
        ds.pert.split(held_out_cell_types=())
    with pytest.raises(ConfigError, match=r"held_out_celltypes: unknown option\. Did you mean 'held_out_cell_types'"):
        ds.pert.split("zeroshot", held_out_celltypes=("Neuron",))


def test_labels_must_occur_in_the_selection(made):
    neurons = made[0].pert.select(cell_type="Neuron")
    with pytest.raises(LabelNotFoundError, match="held_out_cell_types: got 'Astrocyte'"):
        neurons.pert.split("zeroshot", held_out_cell_types=("Astrocyte",))


def test_cells_are_read_by_row(made):
    ds, obs = made
    rows = np.array([5, 3, 80])
    for pert in (ds.pert, ds.isel(cell=slice(10)).pert):
        assert pert.obs_names(rows).tolist() == obs.index[rows].tolist()
        assert pert.read_obs("u1", rows).tolist() == obs["u1"].iloc[rows].tolist()
    with pytest.raises(KeyError, match="Did you mean 'text'"):
        ds.pert.read_obs("txet", rows)


def test_the_store_is_opened_once(made, monkeypatch):
    opened, init = [], Store.__init__
    monkeypatch.setattr(
        Store, "__init__", lambda self, *args, **options: [opened.append(args), init(self, *args, **options)][1]
    )
    ds = lp.open(made[0].attrs["store"])
    assert len(opened) == 1
    with pytest.raises(ConfigError, match="targets"):
        ds.pert.knockdown()
    assert len(opened) == 2
    assert ds.pert.source().store is ds.pert.store
    ds.pert.split()
    ds.pert.match_controls()
    ds.pert.select(perturbation="TP53")
    repr(ds.pert)
    assert len(opened) == 2


@pytest.mark.parametrize(
    ("config", "kwargs", "left_out"),
    [
        (KnockdownFilterConfig, KnockdownFilterKwargs, set()),
        (ControlMappingConfig, ControlMappingKwargs, set()),
        (PerturbationSourceConfig, PerturbationSourceKwargs, {"file_path"}),
        (Roles, RolesKwargs, set()),
        (SplitOptions, SplitKwargs, {"split_mode"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_keyword_options_are_the_fields_of_their_config(config, kwargs, left_out):
    expected = {field.name: field.type for field in fields(config) if field.name not in left_out}
    assert {name: annotation.__forward_arg__ for name, annotation in kwargs.__annotations__.items()} == expected


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("knockdown", {"min_cell": 3}, "min_cell: unknown option. Did you mean 'min_cells'"),
        ("match_controls", {"n_basal_sample": 3}, "n_basal_sample: unknown option. Did you mean 'n_basal_samples'"),
        ("source", {"hvgcol": "hvg"}, "hvgcol: unknown option. Did you mean 'hvg_col'"),
        ("source", {"file_path": "other.zarr"}, "file_path: unknown option. ds.pert.source reads the store behind"),
        ("regroup", {"pertcol": "text"}, "pertcol: unknown option. Did you mean 'pert_col'"),
    ],
    ids=["knockdown", "match_controls", "source", "source-path", "regroup"],
)
def test_an_unknown_option_raises_with_near_matches(made, method, options, message):
    with pytest.raises(ConfigError) as error:
        getattr(made[0].pert, method)(**options)
    assert str(error.value).startswith(message)


def test_the_repr_has_two_lines(made):
    selection = made[0].isel(cell=slice(3, 40))
    first, second = repr(selection.pert).splitlines()
    assert first == f"PertAccessor(37 cells in {len(selection.pert.table())} groups; ds.pert.table() lists them)"
    assert second == f"screen: {selection.attrs['screen']}"


class Guarded(LocalFileSystem):
    """A file system that wants a key, as object storage does."""

    protocol = "guarded"

    def __init__(self, key=None, **options):
        if key != "secret":
            raise PermissionError("no credentials")
        super().__init__(**options)

    @classmethod
    def _strip_protocol(cls, path):
        return LocalFileSystem._strip_protocol(path.removeprefix("guarded://"))


@pytest.fixture
def guarded(tmp_path):
    """URL of a store behind credentials."""
    fsspec.register_implementation("guarded", Guarded, clobber=True)
    return f"guarded://{converted(tmp_path, screen(lean=True))[1]}"


def test_whatever_is_derived_from_a_dataset_finds_the_credentials_of_its_store(guarded):
    with pytest.raises(PermissionError):
        lp.open(guarded)
    ds = lp.open(guarded, storage_options={"key": "secret"})
    derived = [
        ds,
        ds.map(lambda x: x, keep_attrs=True),
        xr.Dataset(ds.coords, attrs=ds.attrs),
        ds.isel(cell=slice(0, 50)).compute(),
        pickle.loads(pickle.dumps(ds)),
    ]
    for each in derived:
        assert len(each.pert.table()) > 0
        shown = f"{each!r} {each._repr_html_()} {each.attrs} {each.encoding} {each.pert!r} {each.pert.store!r}"
        assert "secret" not in shown
    assert lp.verify(guarded, storage_options={"key": "secret"}) > 0


class TestCellsByName:
    def test_rows_are_those_of_the_names(self, made):
        ds, obs = made
        rows = np.random.default_rng(0).permutation(len(obs))[:50]
        names = obs.index[rows]
        assert ds.pert.rows_of([*names, names[0]]).tolist() == [*rows, rows[0]]
        assert ds.pert.rows_of(names[0]).tolist() == [rows[0]]
        assert ds.pert.rows_of([]).tolist() == []
        assert ds.isel(cell=ds.pert.rows_of(list(names))).cell_name.values.tolist() == names.tolist()

    def test_hashes_are_read_a_part_at_a_time(self, made, monkeypatch):
        ds, obs = made
        monkeypatch.setattr("lazypert.store.find_cells._AT_ONCE", 7)
        assert ds.pert.rows_of(list(obs.index[::-1])).tolist() == list(range(len(obs)))[::-1]

    def test_names_that_do_not_occur_raise(self, made):
        ds, obs = made
        with pytest.raises(
            LabelNotFoundError, match=r"got 1 of 2 names that no cell of the store has, such as 'nobody'"
        ):
            ds.pert.rows_of([obs.index[3], "nobody"])
        selected = ds.isel(cell=slice(5, 20))
        assert selected.pert.rows_of([obs.index[6]]).tolist() == [6]
        with pytest.raises(LabelNotFoundError, match="not of this selection"):
            selected.pert.rows_of([obs.index[6], obs.index[3]])

    def test_a_name_of_several_cells_raises(self, tmp_path):
        adata = screen()
        names = adata.obs_names.to_numpy(dtype=object).copy()
        names[7] = names[3]
        adata.obs_names = names
        _, store = converted(tmp_path, adata)
        with pytest.raises(ConfigError, match="which several cells of the store have"):
            lp.open(store).pert.rows_of([names[3]])
