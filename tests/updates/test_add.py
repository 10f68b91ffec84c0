"""Added columns and embeddings equal the table's values at every door, and wrong tables are clear errors."""

import json
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import zarr

import lazypert as lp
from lazypert.errors import ColumnNotFoundError, ConfigError, SourceFormatError, SourceMissingError, StoreChangedError
from lazypert.store.columns import open_column
from lazypert.store.store import Store
from lazypert.store.verify import verify
from tests.support.killer import files
from tests.support.stores import ROLES, every_column, read_store, screen, write


def names_of(store):
    return read_store(store).obs_names.to_numpy(dtype=object)


def shuffled(store, n_left_out=0, **columns):
    """A table of these columns, given in store order, with its rows in another order."""
    frame = pd.DataFrame(columns, index=names_of(store))
    return frame.sample(len(frame) - n_left_out, random_state=1)


def all_kinds(store):
    """A table with one column of each kind, in another order than the store."""
    frame = every_column(90, seed=0).drop(columns=["perturbation", "cell_type", "batch"]).add_prefix("new_")
    return frame.loc[frame.sample(frac=1, random_state=3).index]


def test_every_kind_of_column_reads_back(store):
    added = all_kinds(store)
    before = read_store(store)
    lp.add_obs(store, added)
    assert verify(store) > 100
    found = read_store(store)
    assert list(found.obs) == [*before.obs, *added]
    pd.testing.assert_frame_equal(found.obs[list(before.obs)], before.obs)
    pd.testing.assert_frame_equal(added, all_kinds(store))  # the table itself is not changed
    expected = added.loc[found.obs_names]
    for name in ("new_text", "new_maybe_text"):  # AnnData writes text with repeated labels as categories
        assert isinstance(found.obs[name].dtype, pd.CategoricalDtype)
        assert found.obs[name].astype(object).fillna("?").tolist() == expected[name].astype(object).fillna("?").tolist()
        del found.obs[name], expected[name], added[name]
    pd.testing.assert_frame_equal(found.obs[list(added)], expected, check_names=False, check_index_type=False)
    np.testing.assert_array_equal(found.X.toarray(), before.X.toarray())


def test_a_store_is_as_if_it_had_been_converted_with_the_column(store, made, tmp_path):
    adata = screen()
    adata.obs["new"] = np.arange(90) * 3
    adata.obs["guide"] = pd.Categorical([f"g{i % 4}" for i in range(90)])
    write(adata, tmp_path / "s.h5ad")
    converted = files(lp.convert(tmp_path / "s.h5ad", tmp_path / "converted.zarr", progress=False, **ROLES))
    lp.add_obs(store, adata.obs[["new", "guide"]])
    added = files(store)
    assert set(added) == set(converted)
    assert {key for key in added if added[key] != converted[key]} == {"zarr.json"}
    ours, theirs = (json.loads(found["zarr.json"]) for found in (added, converted))
    assert ours["consolidated_metadata"] == theirs["consolidated_metadata"]
    assert list(ours["consolidated_metadata"]["metadata"]) == list(theirs["consolidated_metadata"]["metadata"])


def test_all_readers_see_a_new_column(store):
    lp.add_obs(store, shuffled(store, guide=[f"g{i % 3}" for i in range(90)], dose=np.arange(90) / 2))
    expected = read_store(store).obs
    unconsolidated = anndata.read_zarr(zarr.open_group(store, mode="r", use_consolidated=False))
    pd.testing.assert_frame_equal(unconsolidated.obs, expected)
    ds = lp.open(store)
    assert list(ds.guide.values) == list(expected["guide"]) == [f"g{i % 3}" for i in range(90)]
    np.testing.assert_array_equal(ds.dose.values, np.arange(90) / 2)
    assert ds.isel(cell=ds.guide == "g1").sizes["cell"] == 30
    np.testing.assert_array_equal(ds.pert.obs(["dose"])["dose"], np.arange(90) / 2)
    source = lp.PerturbationAnnDataSource(
        lp.PerturbationSourceConfig(
            file_path=store, pert_col="guide", control_pert="g0", cell_type_col=None, additional_obs=("dose",)
        )
    )
    assert source[7]["dose"] == 3.5
    np.testing.assert_array_equal(source.get_control_mask(), np.arange(90) % 3 == 0)


def test_groups_by_a_new_column(store):
    guides = np.array(["sgA", "sgB", "none"], dtype=object)[np.arange(90) % 3]
    lp.add_obs(store, shuffled(store, guide=guides))
    groups = lp.open(store).pert.regroup(pert_col="guide", control_pert="none")
    types = read_store(store).obs["cell_type"].to_numpy()
    expected = pd.Series(1, pd.MultiIndex.from_arrays([types, guides])).groupby(level=[0, 1]).sum()
    table = groups.table()
    found = {(row.cell_type, row.perturbation): row.n_cells for row in table.itertuples()}
    assert found == expected.to_dict()


def test_the_pipeline_and_the_loader_use_what_was_added(store):
    labels = np.where(np.arange(90) % 3 == 0, "ctrl", np.where(np.arange(90) % 3 == 1, "KO1", "KO2"))
    latent = np.random.default_rng(0).normal(size=(90, 4)).astype("f4")
    lp.add_obs(store, shuffled(store, call=labels, dose=np.arange(90.0)))
    lp.add_obsm(store, "X_new", latent)
    config = lp.PerturbationPipelineConfig(
        pert_col="call", control_pert="ctrl", cell_type_col="cell_type", batch_col="batch", split_mode="random",
        output_space="embedding", embedding_key="X_new", additional_obs=("dose",), seed=3,
    )  # fmt: skip
    result = lp.PerturbationPipeline(config).setup([store])
    loader = result.loader("train", sentence_size=4, sentences_per_batch=2, obs=["dose"])
    n_batches = 0
    for batch in loader:
        rows = np.asarray(batch.obs["dose"]).astype(int).ravel()
        np.testing.assert_array_equal(np.asarray(batch.counts).reshape(-1, 4), latent[rows])
        n_batches += 1
    assert n_batches > 2


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz", ".parquet", "_index.parquet"])
def test_files_of_tables(store, tmp_path, suffix):
    frame = shuffled(store, n=np.arange(90), flag=np.arange(90) % 2 == 0, guide=[f"g{i % 3}" for i in range(90)])
    path = tmp_path / f"calls{suffix}"
    if suffix == "_index.parquet":
        pytest.importorskip("pyarrow")
        frame.to_parquet(path)
    elif suffix == ".parquet":
        pytest.importorskip("pyarrow")
        frame.assign(cell_barcode=frame.index).reset_index(drop=True).to_parquet(path)
    else:
        frame.rename_axis("cell").to_csv(path, sep="\t" if ".tsv" in suffix else ",")
    lp.add_obs(store, path, columns=["guide", "n"])
    obs = read_store(store).obs
    assert list(obs)[-2:] == ["guide", "n"]
    np.testing.assert_array_equal(obs["n"], np.arange(90))
    assert list(obs["guide"]) == [f"g{i % 3}" for i in range(90)]


@pytest.mark.parametrize(
    ("header", "name"),
    [("x,cell_barcode", "cell_barcode"), (",barcode", ""), ("anything,x", "anything"), ("x,Cell_Name", "Cell_Name")],
)
def test_the_column_of_cell_names(store, tmp_path, header, name):
    columns = header.split(",")
    lines = [header]
    for number, cell in enumerate(names_of(store)):
        lines.append(",".join(cell if column == name else str(number) for column in columns))
    (tmp_path / "t.csv").write_text("\n".join(lines))
    lp.add_obs(store, tmp_path / "t.csv")
    (other,) = set(columns) - {name}
    np.testing.assert_array_equal(read_store(store).obs[other], np.arange(90))


def test_cell_names_of_a_file_are_text(tmp_path):
    adata = screen(4, lean=True)
    adata.obs_names = ["001", "1", "NA", "1e3"]
    write(adata, tmp_path / "s.h5ad")
    path = lp.convert(tmp_path / "s.h5ad", tmp_path / "s.zarr", progress=False, pert_col="perturbation")
    (tmp_path / "t.csv").write_text("cell,x\n1e3,3\nNA,2\n1,1\n001,0\n")
    lp.add_obs(path, tmp_path / "t.csv")
    assert read_store(path).obs["x"].to_dict() == {"001": 0, "1": 1, "NA": 2, "1e3": 3}


def test_cells_that_the_table_lacks_get_missing_values_and_a_warning(store):
    frame = shuffled(
        store, 12, f=np.arange(90.0), i=np.arange(90, dtype="i2"), b=np.arange(90) % 2 == 0, t=["x", "y"] * 45,
        u=[f"u{i}" for i in range(90)], c=pd.Categorical(["lo", "hi"] * 45, ["lo", "mid", "hi"], ordered=True),
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"12 of the store's 90 cells are not in the table \('cell0_\d+'.*missing"):
        lp.add_obs(store, frame)
    obs = read_store(store).obs
    expected = frame.reindex(obs.index)
    is_missing = expected["f"].isna().to_numpy()
    for name in frame:
        np.testing.assert_array_equal(obs[name].isna(), is_missing)
        assert list(obs[name][~is_missing]) == list(expected[name][~is_missing])
    assert obs["i"].dtype == "Int16"
    assert obs["b"].dtype == "boolean"
    assert obs["f"].dtype == "float64"
    assert list(obs["c"].cat.categories) == ["lo", "mid", "hi"]
    assert obs["c"].cat.ordered
    assert Store(store).read_array("obs/c/codes")[is_missing].tolist() == [-1] * 12


def test_rows_of_unknown_cells(store):
    frame = shuffled(store, x=np.arange(90))
    more = pd.concat([frame, pd.DataFrame({"x": [-1, -2]}, index=["stranger", "other"])])
    before = files(store)
    with pytest.raises(ConfigError, match=r"2 of 92 cell names .* 'stranger', 'other'.*on_unknown='ignore'"):
        lp.add_obs(store, more)
    assert files(store) == before
    lp.add_obs(store, more, on_unknown="ignore")
    np.testing.assert_array_equal(read_store(store).obs["x"], np.arange(90))


def repeated(frame):
    return pd.concat([frame, frame.iloc[:1]])


BAD_TABLES = {
    "repeated_names": (repeated, r"got 'cell0_\d+' more than once \(1 names\)"),
    "no_names": (lambda t: t.reset_index(drop=True).rename(lambda i: i), "numbers its rows|index of integer"),
    "missing_name": (lambda t: t.set_axis([*t.index[:-1], None]), "none missing"),
    "no_match": (lambda t: t.add_suffix("-1", axis=0), "none of its 90 cell names is in the store.*-1.*'cell0_"),
    "no_columns": (lambda t: t[[]], "got no columns"),
    "two_columns": (lambda t: pd.concat([t, t], axis=1), "two columns named 'x'"),
    "slash": (lambda t: t.rename(columns={"x": "a/b"}), "got the name 'a/b'"),
    "too_long": (lambda t: t.rename(columns={"x": "é" * 128}), "at most 255 bytes"),
    "our_tables": (lambda t: t.rename(columns={"x": "__lazypert__"}), "got the name '__lazypert__'"),
    "number_as_name": (lambda t: t.rename(columns={"x": 1}), "got the name 1"),
    "exists": (lambda t: t.rename(columns={"x": "flag"}), "'flag', which the store has already.*overwrite=True"),
    "dates": (lambda t: t.assign(x=pd.Timestamp("2024-01-01")), "column 'x' of datetime64"),
    "lists": (lambda t: t.assign(x=[[1]] * 90), "column 'x' of mixed values"),
    "mixed": (lambda t: t.assign(x=["a", 1] * 45), "column 'x' of mixed"),
    "complex": (lambda t: t.assign(x=1j), "column 'x' of complex"),
    "not_a_table": (lambda _: [1, 2], "got list, expected the path"),
    "wrong_kind_of_file": (lambda _: "t.xlsx", "expected a file that ends with .csv"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_wrong_tables_are_clear_errors(store, change, message):
    before = files(store)
    with pytest.raises((ConfigError, SourceFormatError), match=message):
        lp.add_obs(store, change(shuffled(store, x=np.arange(90))))
    assert files(store) == before


def test_other_errors(store, tmp_path):
    frame = shuffled(store, x=np.arange(90))
    with pytest.raises(ColumnNotFoundError, match="columns: got 'y', expected a column of the table"):
        lp.add_obs(store, frame, columns=["y"])
    with pytest.raises(ColumnNotFoundError, match="columns: got 'z'"):
        lp.add_obs(store, frame, columns="z")  # one name is a list of one
    with pytest.raises(SourceMissingError, match="there is no file"):
        lp.add_obs(store, tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("\n".join(["cell", *frame.index]))
    with pytest.raises(ConfigError, match="got no columns beside the cell names"):
        lp.add_obs(store, tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes(b'\xff\xfe\x00"')
    with pytest.raises(SourceFormatError, match="cannot be read"):
        lp.add_obs(store, tmp_path / "t.csv")


@pytest.mark.parametrize("role", ["perturbation", "cell_type", "batch"])
def test_columns_of_the_groups_are_never_replaced(store, role):
    frame = shuffled(store, **{role: ["x"] * 90})
    with pytest.raises(ConfigError, match=f"'{role}', which is the .*_col that the store's cells are grouped by"):
        lp.add_obs(store, frame, overwrite=True)


def test_covariates_are_never_replaced(tmp_path):
    adata = screen(6, lean=True)
    adata.obs["dose"] = [1, 1, 2, 2, 3, 3]
    write(adata, tmp_path / "s.h5ad")
    roles = {"pert_col": "perturbation", "covariates": "dose"}
    path = lp.convert(tmp_path / "s.h5ad", tmp_path / "s.zarr", progress=False, **roles)
    with pytest.raises(ConfigError, match="'dose', which is the covariate that the store's cells are grouped by"):
        lp.add_obs(path, pd.DataFrame({"dose": np.ones(6)}, index=adata.obs_names), overwrite=True)


def test_names_of_the_store_must_be_unique(tmp_path):
    adata = screen(6, lean=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.obs_names = ["a", "b", "c", "c", "d", "e"]
        write(adata, tmp_path / "s.h5ad")
    path = lp.convert(tmp_path / "s.h5ad", tmp_path / "s.zarr", progress=False, pert_col="perturbation")
    with pytest.raises(ConfigError, match=r"several cells of .* share a name, such as 'c'"):
        lp.add_obs(path, pd.DataFrame({"x": [1, 2]}, index=["a", "c"]))
    lp.add_obsm(path, "X_new", np.arange(12.0).reshape(6, 2))  # needs no names
    assert verify(path) > 20


def test_overwriting_replaces_a_column_in_its_place(store):
    order = list(read_store(store).obs)
    lp.add_obs(store, shuffled(store, flag=["a", "b", "c"] * 30, f8=np.arange(90)), overwrite=True)
    verify(store)
    obs = read_store(store).obs
    assert list(obs) == order
    assert list(obs["flag"]) == ["a", "b", "c"] * 30
    np.testing.assert_array_equal(obs["f8"], np.arange(90))


@pytest.mark.parametrize("values", [["y", "x"] * 45, np.arange(90)], ids=["categories", "numbers"])
def test_an_open_store_never_mixes_a_replaced_column_with_the_new_one(store, values):
    lp.add_obs(store, shuffled(store, call=["a", "b"] * 45, kept=np.arange(90)))
    opened, ds = Store(store), lp.open(store)
    fresh, used = (open_column(opened, "obs/call") for _ in range(2))
    assert used[:2].tolist() == ["a", "b"]
    kept = open_column(opened, "obs/kept")
    lp.add_obs(store, shuffled(store, call=values), overwrite=True)
    for read in (lambda: fresh[:2], lambda: used[5:9], lambda: ds.call.values, lambda: opened.read_column("obs/call")):
        with pytest.raises(StoreChangedError, match=r"obs/call: the column was replaced after .* was opened"):
            read()
    np.testing.assert_array_equal(kept[:], np.arange(90))
    assert list(open_column(Store(store), "obs/call")[:2]) == list(values[:2])


def test_an_open_store_keeps_working_while_others_are_added(store):
    opened, ds = Store(store), lp.open(store)
    before, digest = read_store(store), Store(store).content_digest
    for number in range(3):
        lp.add_obs(store, shuffled(store, **{f"n{number}": np.arange(90)}))
    assert opened.content_digest == digest
    np.testing.assert_array_equal(ds.X.values, before.X.toarray())
    assert list(ds.perturbation.values) == list(before.obs["perturbation"])
    assert list(ds.cell_name.values) == list(before.obs_names)


def test_adding_keeps_the_digest_and_what_is_used_changes_it(store):
    before = Store(store)
    digest = before.content_digest
    lp.add_obs(store, shuffled(store, x=np.arange(90), y=np.arange(90)))
    lp.add_obsm(store, "X_new", np.ones((90, 2)))
    after = Store(store)
    assert after.content_digest == digest == after.digest_with(["obs/batch"])
    assert set(after.added) == {"obs/x", "obs/y", "obsm/X_new"}
    assert len({digest, *(after.digest_with([name]) for name in after.added)}) == 4
    lp.add_obs(store, shuffled(store, x=np.arange(90)[::-1]), overwrite=True)
    replaced = Store(store)
    assert replaced.content_digest == digest
    assert replaced.digest_with(["obs/x"]) != after.digest_with(["obs/x"])
    assert replaced.digest_with(["obs/y"]) == after.digest_with(["obs/y"])
    lp.add_obs(store, shuffled(store, x=np.arange(90)), overwrite=True)
    assert Store(store).digest_with(["obs/x"]) == after.digest_with(["obs/x"])
    lp.add_obs(store, shuffled(store, flag=np.arange(90)), overwrite=True)  # a converted column
    assert Store(store).content_digest != digest


def test_runs_and_loader_states_survive_new_columns_and_refuse_replaced_ones(store, tmp_path):
    lp.add_obs(store, shuffled(store, dose=np.arange(90.0)))

    def set_up():
        config = lp.PerturbationPipelineConfig(split_mode="random", additional_obs=("dose",))
        result = lp.PerturbationPipeline(config).setup([store])
        return result, result.loader("train", sentence_size=4, sentences_per_batch=2)

    result, loader = set_up()
    lp.save_run(tmp_path / "run.json", result, loader)
    next(iter(loader))
    state = loader.state_dict()
    lp.add_obs(store, shuffled(store, other=np.arange(90)))
    lp.load_run(tmp_path / "run.json", verify=True)
    set_up()[1].load_state_dict(state)
    lp.add_obs(store, shuffled(store, dose=np.arange(90.0)[::-1]), overwrite=True)
    with pytest.raises(lp.errors.RunChangedError, match="digest"):
        lp.load_run(tmp_path / "run.json")
    with pytest.raises(ConfigError, match="state: got a state saved with stores="):
        set_up()[1].load_state_dict(state)


@pytest.mark.parametrize("dtype", ["f4", "f8", "i2", ">f4", "f2"])
def test_an_embedding_reads_back(store, dtype):
    values = np.random.default_rng(0).normal(size=(90, 5)) * 9
    values = values.astype(dtype)
    lp.add_obsm(store, "X_new", values)
    verify(store)
    found = read_store(store)
    np.testing.assert_array_equal(found.obsm["X_new"], values)
    np.testing.assert_array_equal(lp.open(store)["X_new"].values, values)
    assert list(found.obsm["X_pca"].ravel()) == list(lp.open(store)["X_pca"].values.ravel())


@pytest.mark.parametrize("kind", ["frame", "names", "nullable"])
def test_an_embedding_by_name(store, kind):
    frame = shuffled(store, 7, a=np.arange(90), b=np.arange(90) * 2)
    if kind == "nullable":
        frame = frame.astype("Int64")
    given = (frame,) if kind != "names" else (frame.to_numpy(),)
    with pytest.warns(UserWarning, match=r"7 of the store's 90 cells .* are NaN in obsm/X_new"):
        lp.add_obsm(store, "X_new", *given, obs_names=list(frame.index) if kind == "names" else None)
    expected = frame.reindex(names_of(store)).astype(object).where(lambda t: t.notna(), np.nan).to_numpy(dtype="f8")
    np.testing.assert_array_equal(read_store(store).obsm["X_new"], expected)


def test_an_embedding_is_read_in_blocks(store, monkeypatch):
    monkeypatch.setattr("lazypert.updates.add._BLOCK_BYTES", 1)
    monkeypatch.setattr("lazypert.conversion.array_writer.DENSE_CHUNK_BYTES", 7 * 3 * 8)

    class Sliced:
        shape, dtype, longest = (90, 3), np.dtype("f8"), 0
        values = np.random.default_rng(0).random((90, 3))

        def __getitem__(self, rows):
            found = self.values[rows]
            self.longest = max(self.longest, len(found))
            return found

    given = Sliced()
    lp.add_obsm(store, "X_new", given)
    assert given.longest == 7
    verify(store)
    np.testing.assert_array_equal(read_store(store).obsm["X_new"], given.values)


BAD_EMBEDDINGS = {
    "exists": ("X_pca", np.ones((90, 2)), None, "'X_pca', which the store's obsm has already"),
    "sparse_exists": ("guides", np.ones((90, 2)), None, "'guides', which the store's obsm has already"),
    "rows": ("new", np.ones((89, 2)), None, "got 89 rows, expected 90, in the store's order"),
    "names": ("new", np.ones((90, 2)), ["a"], "got 90 rows, expected 1, as names"),
    "one_dimension": ("new", np.ones(90), None, r"of shape \(90,\), expected a dense"),
    "no_width": ("new", np.ones((90, 0)), None, "width 0"),
    "text": ("new", np.full((90, 2), "x"), None, "expected integers or floats"),
    "slash": ("a/b", np.ones((90, 2)), None, "got the name 'a/b'"),
    "list": ("new", [[1, 2]] * 90, None, "got list, expected a dense"),
}


@pytest.mark.parametrize(("name", "values", "names", "message"), BAD_EMBEDDINGS.values(), ids=BAD_EMBEDDINGS)
def test_wrong_embeddings_are_clear_errors(store, name, values, names, message):
    before = files(store)
    with pytest.raises(ConfigError, match=message):
        lp.add_obsm(store, name, values, obs_names=names)
    assert files(store) == before
