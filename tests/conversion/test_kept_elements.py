"""uns, varm, varp and tables in obsm: what a store keeps, and what it says of the rest."""

import errno
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata.experimental import read_lazy
from scipy import sparse

import lazypert as lp
from lazypert.errors import MachineError, NotCopiedWarning, StoreDamagedError
from lazypert.store.store import Store
from tests.support.stores import ROLES, counts, read_store, screen, source_row

N, M = 40, 9
RECORDS = np.array([("g1", "g2"), ("g3", "g4")], dtype=[("TP53", "O"), ("KRAS", "O")])


def with_embeddings(adata):
    adata.obsm["X_pca"] = np.random.default_rng(0).normal(size=(N, 3)).astype("f4")
    adata.obsm["guides"] = counts(N, 5)
    return adata


def rich(seed=0, genes=None):
    """AnnData with everything that a store keeps besides cells and genes."""
    adata = with_embeddings(screen(N, M, seed, genes=genes, lean=True))
    rng = np.random.default_rng(7)
    adata.uns = {
        "title": "a screen",
        "n": 3,
        "rate": 0.25,
        "flag": True,
        "zeros": {"array": np.zeros(3), "number": 0, "flag": False, "text": "", "texts": np.array(["", ""])},
        "colors": np.array(["#000000", "#ffffff"]),
        "nested": {"params": {"k": 5, "values": np.arange(4)}, "empty": {}},
        "table": pd.DataFrame({"x": [1, 2], "kind": pd.Categorical(["a", "b"])}, index=["r", "s"]),
        "graph": sparse.random(5, 5, 0.5, format="csr", random_state=0),
        "ranks": RECORDS,
    }
    adata.varm["PCs"] = rng.normal(size=(M, 2))
    adata.varm["table"] = pd.DataFrame({"score": np.arange(M)}, index=adata.var_names)
    adata.varp["corr"] = sparse.csr_matrix(rng.random((M, M)))
    adata.obsm["scores"] = pd.DataFrame(
        {"x": rng.random(N), "label": pd.Categorical(rng.choice(["p", "q"], N)), "n": np.arange(N)},
        index=adata.obs_names,
    )
    return adata


def write(adata, path):
    with anndata.settings.override(allow_write_nullable_strings=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.copy().write_h5ad(path)
    return path


def assert_equal(found, expected):
    """Values as AnnData returns them, compared by content."""
    if isinstance(expected, dict):
        assert set(found) == set(expected)
        for name in expected:
            assert_equal(found[name], expected[name])
    elif isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(found, expected, check_dtype=False, check_column_type=False)
    elif sparse.issparse(expected):
        np.testing.assert_array_equal(found.toarray(), expected.toarray())
    elif isinstance(expected, np.ndarray) and expected.dtype.names:
        assert found.tolist() == expected.tolist()
        assert found.dtype.names == expected.dtype.names
    else:
        np.testing.assert_array_equal(found, expected)


def assert_kept(path, adata):
    found, rows = read_store(path), source_row(path)
    assert_equal(found.uns, adata.uns)
    assert_equal(dict(found.varm), dict(adata.varm))
    assert_equal(dict(found.varp), dict(adata.varp))
    assert_equal(found.obsm["scores"], adata.obsm["scores"].iloc[rows])
    lp.verify(path)


@pytest.mark.parametrize(
    "kind", ["h5ad", *(pytest.param(k, marks=pytest.mark.slow) for k in ("memory", "lazy", "zarr"))]
)
def test_everything_is_kept(tmp_path, kind):
    adata = rich()
    source = adata if kind == "memory" else write(adata, tmp_path / "screen.h5ad")
    if kind == "lazy":
        source = read_lazy(source)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotCopiedWarning)
        lp.convert(source, tmp_path / "s.zarr", **ROLES)
    if kind == "zarr":
        lp.convert(tmp_path / "s.zarr", tmp_path / "again.zarr", **ROLES)
        found = read_store(tmp_path / "again.zarr")
        assert_equal(found.uns, adata.uns)
        assert_equal(found.obsm["scores"], adata.obsm["scores"].loc[found.obs_names])
    assert_kept(tmp_path / "s.zarr", adata)


def test_views_keep_what_they_select(tmp_path):
    adata = rich()
    view = adata[::2, [4, 1]]
    lp.convert(view, tmp_path / "s.zarr", **ROLES)
    assert_kept(tmp_path / "s.zarr", view.copy())


def test_verify_covers_them(tmp_path):
    lp.convert(rich(), tmp_path / "s.zarr", **ROLES)
    victim = next(path for path in (tmp_path / "s.zarr" / "uns" / "colors").rglob("c/*") if path.is_file())
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreDamagedError, match="uns/colors"):
        lp.verify(tmp_path / "s.zarr")


def test_several_files_keep_what_is_the_same_in_all(tmp_path):
    one, two = rich(1), rich(2)
    two.uns["n"] = 4
    del two.uns["title"]
    two.varm["PCs"] = two.varm["PCs"] + 1
    files = [write(one, tmp_path / "one.h5ad"), write(two, tmp_path / "two.h5ad")]
    with pytest.warns(NotCopiedWarning) as caught:
        lp.convert(files, tmp_path / "s.zarr", **ROLES)
    text = str(caught[0].message)
    assert "uns/title was not copied: it is not in every file" in text
    assert "uns/n was not copied: it differs between the files" in text
    assert "varm/PCs was not copied: it differs between the files" in text
    found = read_store(tmp_path / "s.zarr")
    assert set(found.uns) == set(one.uns) - {"title", "n"}
    assert set(found.varm) == {"table"}
    both = pd.concat([one.obsm["scores"], two.obsm["scores"]])
    assert_equal(found.obsm["scores"], both.loc[found.obs_names])


def test_other_genes(tmp_path):
    one, two = rich(1), rich(2, genes=[f"gene{j}" for j in range(1, M + 1)])
    files = [write(one, tmp_path / "one.h5ad"), write(two, tmp_path / "two.h5ad")]
    with pytest.warns(NotCopiedWarning):
        lp.convert(files, tmp_path / "s.zarr", **ROLES)
    assert any(
        line == "varp/corr was not copied: the genes of the files differ"
        for line in Store(tmp_path / "s.zarr").attrs["warnings"]
    )
    one.raw = screen(N, M + 2, lean=True)
    with pytest.warns(NotCopiedWarning):
        lp.convert(one, tmp_path / "raw.zarr", layer="raw", **ROLES)
    found = read_store(tmp_path / "raw.zarr")
    assert not found.varm
    assert set(found.uns) == set(one.uns)
    assert any(
        "varm/PCs was not copied: raw becomes X" in line for line in Store(tmp_path / "raw.zarr").attrs["warnings"]
    )


def test_what_anndata_cannot_write_is_told(tmp_path):
    adata = screen(N, M, lean=True)
    adata.uns = {"fine": 1, "bad": {"deep": object()}, "a/b": 2, "zarr.json": 3, "x" * 300: 4, "n": {"..": 5}}
    adata.obsp["graph"] = sparse.eye(N, format="csr")
    with pytest.warns(NotCopiedWarning) as caught:
        lp.convert(adata, tmp_path / "s.zarr", **ROLES)
    assert len(caught) == 1
    lines = Store(tmp_path / "s.zarr").attrs["warnings"]
    for name in ("bad", "a/b", "zarr.json", "x" * 300, "n"):
        assert any(f"uns/{name} was not copied: AnnData cannot write it to Zarr" in line for line in lines), name
    assert any("obsp/graph was not copied" in line for line in lines)
    assert set(read_store(tmp_path / "s.zarr").uns) == {"fine"}


@pytest.mark.parametrize(
    "value",
    [
        {"params": {"k": 5}, "distances": sparse.eye(N, format="csr")},
        {"inner": {"pairs": np.zeros((N, 2))}},
        np.arange(N),
        np.arange(N) > 3,
        pd.DataFrame({"x": range(N)}),
    ],
    ids=["graph", "nested", "numbers", "flags", "table"],
)
def test_values_per_cell_are_left_out_because_cells_are_sorted(tmp_path, value):
    adata = screen(N, M, lean=True)
    adata.uns = {"own": value, "texts": np.array([f"#{i:06d}" for i in range(N)]), "other": np.arange(N + 1)}
    with pytest.warns(NotCopiedWarning, match="uns/own.* was not copied: .*has a value for each cell"):
        store = lp.convert(write(adata, tmp_path / "a.h5ad"), tmp_path / "s.zarr", **ROLES)
    assert set(read_store(store).uns) == {"texts", "other"}


def test_an_unknown_encoding_in_a_file_is_left_out(tmp_path):
    import h5py

    path = write(rich(), tmp_path / "screen.h5ad")
    with h5py.File(path, "a") as file:
        file["uns/n"].attrs["encoding-type"] = "from-the-future"
        file["uns/link"] = h5py.SoftLink("/nowhere")
    with pytest.warns(NotCopiedWarning, match=r"uns/link was not copied.*uns/n was not copied"):
        lp.convert(path, tmp_path / "s.zarr", **ROLES)
    assert "title" in read_store(tmp_path / "s.zarr").uns


def test_an_element_that_cannot_be_read_now_is_not_left_out(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    path = write(rich(), tmp_path / "screen.h5ad")
    monkeypatch.setattr("lazypert_converters._anndata.AnnDataReader.read_element", fail)
    with pytest.raises(MachineError, match=r"screen\.h5ad' cannot be read now"):
        lp.convert(path, tmp_path / "s.zarr", **ROLES)


def test_warnings_about_code_leave_nothing_out(tmp_path, monkeypatch):
    read = anndata.io.read_elem

    def read_with_warning(*args):
        warnings.warn("a later version will differ", FutureWarning, stacklevel=1)
        return read(*args)

    monkeypatch.setattr("anndata.io.read_elem", read_with_warning)
    adata = rich()
    lp.convert(adata, tmp_path / "s.zarr", **ROLES)
    monkeypatch.undo()
    assert_kept(tmp_path / "s.zarr", adata)


def test_large_elements_are_left_out(tmp_path):
    adata = screen(N, M, lean=True)
    adata.uns["large"] = np.zeros(9 * 1024**2, "u1")
    for source in (adata, write(adata, tmp_path / "screen.h5ad")):
        with pytest.warns(NotCopiedWarning, match=r"uns/large was not copied: it takes 9\.0 MiB, more than an eighth"):
            lp.convert(source, tmp_path / "s.zarr", memory_limit="64MiB", overwrite=True, **ROLES)


def test_a_resumed_conversion_keeps_them(tmp_path, monkeypatch):
    adata = rich()
    path = write(adata, tmp_path / "screen.h5ad")
    with monkeypatch.context() as context:
        context.setattr("lazypert.conversion.convert.write_tables", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            lp.convert(path, tmp_path / "s.zarr", **ROLES)
    assert list(tmp_path.glob("s.zarr.partial-*"))
    lp.convert(path, tmp_path / "s.zarr", **ROLES)
    assert_kept(tmp_path / "s.zarr", adata)


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
@pytest.mark.slow
def test_names_of_guides_survive_a_second_conversion(tmp_path):
    adata = with_embeddings(screen(N, M, lean=True))
    adata.uns["obsm_columns"] = {"guides": np.array([f"guide{j}" for j in range(5)])}
    lp.convert(write(adata, tmp_path / "screen.h5ad"), tmp_path / "one.zarr", **ROLES)
    lp.convert(tmp_path / "one.zarr", tmp_path / "two.zarr", **ROLES)
    lp.convert([tmp_path / "one.zarr", tmp_path / "two.zarr"], tmp_path / "both.zarr", **ROLES)
    for name in ("one", "two", "both"):
        found = anndata.read_zarr(tmp_path / f"{name}.zarr").uns["obsm_columns"]
        assert list(found["guides"]) == [f"guide{j}" for j in range(5)]


def test_exports_have_them_for_the_selected_genes(tmp_path):
    adata = rich()
    ds = lp.open(lp.convert(adata, tmp_path / "s.zarr", **ROLES))
    part = ds.isel(cell=[7, 3, 30], gene=[5, 2])
    part.pert.write_h5ad(tmp_path / "part.h5ad")
    for found in (part.pert.to_anndata(), anndata.read_h5ad(tmp_path / "part.h5ad")):
        expected = adata[found.obs_names, found.var_names].copy()
        assert_equal(found.uns, adata.uns)
        assert_equal(dict(found.varm), {name: expected.varm[name] for name in ("PCs", "table")})
        assert_equal(found.varp["corr"], expected.varp["corr"])
        assert_equal(found.obsm["scores"], expected.obsm["scores"])
        assert {"guides", "X_pca"} < set(found.obsm)
    renamed = part.assign_coords(gene=["other", "names"]).pert.to_anndata()
    assert not renamed.varm
    victim = next(path for path in (tmp_path / "s.zarr" / "uns" / "colors").rglob("c/*") if path.is_file())
    victim.unlink()
    with pytest.raises(StoreDamagedError, match="uns/colors"):
        part.pert.to_anndata()
