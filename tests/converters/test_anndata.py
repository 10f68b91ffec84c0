"""The elements of an AnnData are converted exactly, listed as not carried, or refused with a clear error."""

import h5py
import numpy as np
import pytest

import lazypert as lp
from lazypert.converter import open_source
from lazypert.errors import LazypertError, SourceFormatError
from tests.support.conversions import assert_converted, assert_refused, write_changed
from tests.support.h5changes import X, add_column, all_of, as_records, attribute, cut, drop
from tests.support.h5files import (
    N_OBS,
    N_VARS,
    TEXT,
    array,
    categorical,
    frame,
    mark,
    nullable,
    record_var,
    sparse,
    text,
    write_base,
)
from tests.support.oracles import assert_equal, read_with_anndata
from tests.support.sampling import sampled
from tests.support.stores import (
    counts,
    read_store,
)


def add_every_element(file):
    nullable(file["obs"], "maybe", "integer", np.arange(N_OBS), np.zeros(N_OBS, bool))
    columns = np.array(["perturbation", "n", "note", "maybe"], dtype=object)
    file["obs"].attrs.create("column-order", columns, dtype=TEXT)
    raw = mark(file.create_group("raw"), "raw", "0.1.0")
    frame(raw, "var", [f"r{j}" for j in range(4)], [])
    sparse(raw, "X", counts(N_OBS, 4))
    array(file, "uns/pca", [1.0])


def replaced_by(make):
    """Replace a node."""

    def change(file, path):
        del file[path]
        made = make(file, path)
        if made is not None:
            file[path] = made

    return change


def with_attributes(**attrs):
    return lambda file, path: file[path].attrs.update(attrs)


def without_attributes(file, path):
    for name in list(file[path].attrs):
        del file[path].attrs[name]


CHANGES = {
    "lost": replaced_by(lambda f, p: None),
    "group": replaced_by(lambda f, p: [f.create_group(p), None][1]),
    "number": replaced_by(lambda f, p: 3),
    "word": replaced_by(lambda f, p: "word"),
    "nothing": replaced_by(lambda f, p: h5py.Empty("f4")),
    "no_values": replaced_by(lambda f, p: np.zeros(0)),
    "numbers": replaced_by(lambda f, p: np.arange(N_OBS)),
    "negative": replaced_by(lambda f, p: -np.arange(N_OBS)),
    "table": replaced_by(lambda f, p: np.zeros((N_OBS, 7))),
    "booleans": replaced_by(lambda f, p: np.zeros(N_OBS, bool)),
    "records": replaced_by(lambda f, p: np.zeros(N_OBS, [("a", "i4"), ("b", "S3")])),
    "reference": replaced_by(lambda f, p: f["/"].ref),
    "references": replaced_by(lambda f, p: np.array([f["/"].ref] * N_OBS, dtype=h5py.ref_dtype)),
    "lists": replaced_by(lambda f, p: [f.create_dataset(p, (N_OBS,), h5py.vlen_dtype("i4")), None][1]),
    "opaque": replaced_by(lambda f, p: np.zeros(N_OBS, "V5")),
    "a_dtype": replaced_by(lambda f, p: np.dtype("f4")),
    "link_to_nowhere": replaced_by(lambda f, p: h5py.SoftLink("/gone")),
    "link_to_a_lost_file": replaced_by(lambda f, p: h5py.ExternalLink("gone.h5", "/x")),
    "link_to_itself": replaced_by(lambda f, p: h5py.SoftLink(f"/{p}")),
    "link_to_the_root": replaced_by(lambda f, p: h5py.SoftLink("/")),
    "enormous": replaced_by(lambda f, p: [f.create_dataset(p, (2**50,), "i1", chunks=(2**20,)), None][1]),
    "no_attributes": without_attributes,
    "encoded_as_dict": with_attributes(**{"encoding-type": "dict"}),
    "encoded_as_numbers": with_attributes(**{"encoding-type": np.arange(3)}),
    "encoded_as_nothing": with_attributes(**{"encoding-type": h5py.Empty("f4")}),
    "encoded_as_categorical": with_attributes(**{"encoding-type": "categorical", "encoding-version": "0.2.0"}),
    "encoded_as_csr": with_attributes(**{"encoding-type": "csr_matrix", "encoding-version": "0.1.0"}),
    "encoded_as_nullable": with_attributes(**{"encoding-type": "nullable-integer", "encoding-version": "0.1.0"}),
    "index_is_a_number": with_attributes(_index=3),
    "index_is_a_list": with_attributes(_index=np.array(["a", "b"], dtype="S")),
    "columns_are_numbers": with_attributes(**{"column-order": np.arange(3)}),
    "columns_are_nothing": with_attributes(**{"column-order": h5py.Empty("f4")}),
    "columns_are_one": with_attributes(**{"column-order": "n"}),
    "shape_of_reals": with_attributes(shape=np.array([12.0, 7.0])),
    "shape_of_text": with_attributes(shape=np.array(["a", "b"], dtype="S")),
    "shape_of_nothing": with_attributes(shape=h5py.Empty("f4")),
    "shape_enormous": with_attributes(shape=[2**62, 2**62]),
    "categories_are_a_number": with_attributes(categories=3),
    "categories_are_x": lambda f, p: f[p].attrs.update(categories=f["X"].ref),
    "categories_are_nowhere": with_attributes(categories=h5py.Reference()),
    "ordered_is_nothing": with_attributes(ordered=h5py.Empty("f4")),
    "latin1_attribute": with_attributes(x=np.array(b"\xe9", dtype=TEXT)),
}


def read_everything(path):
    reader = open_source(path)
    reader.obs_names()
    reader.var()
    for name in reader.obs_columns:
        assert len(reader.obs_column(name)) == reader.n_obs
    for name in reader.matrices:
        assert reader.scratch_bytes(name) >= 0
        for spec in reader.blocks(name, 200):
            csr = reader.read_block(spec).csr
            assert not csr.nnz or 0 <= csr.indices.min() <= csr.indices.max() < reader.matrices[name]
    for name, width in reader.obsm.items():
        assert reader.read_obsm(name, 0, reader.n_obs).shape == (reader.n_obs, width)
    if "raw/X" in reader.matrices:
        assert len(reader.raw_var()) == reader.matrices["raw/X"]


def error_of(path):
    try:
        read_everything(path)
    except SourceFormatError as error:
        return str(error)
    return None


@pytest.mark.slow  # about a thousand files
@pytest.mark.parametrize("change", CHANGES)
def test_any_changed_node_is_read_or_named_in_an_error(tmp_path, change):
    with h5py.File(write_base(tmp_path / "base.h5ad", add_every_element)) as file:
        paths = []
        file.visit(paths.append)
    assert len(paths) > 30
    base = (tmp_path / "base.h5ad").read_bytes()
    path = tmp_path / "odd.h5ad"
    for where in paths:
        path.write_bytes(base)
        with h5py.File(path, "r+") as file:
            CHANGES[change](file, where)
        said = error_of(path)
        assert said is None or (repr(str(path)) in said and len(said) < 1_000), (where, said)


def raw(make):
    def change(file):
        group = mark(file.create_group("raw"), "raw", "0.1.0")
        frame(group, "var", [f"r{j}" for j in range(N_VARS + 2)], ["kind"])
        categorical(group["var"], "kind", np.arange(N_VARS + 2) % 2, ["a", "b"])
        make(group, counts(N_OBS, N_VARS + 2, seed=5))

    return change


def old_with_raw(file):
    as_records()(file)
    file.create_group("raw.X").attrs.update({"h5sparse_format": "csc", "h5sparse_shape": X.shape})
    for part in ("data", "indices", "indptr"):
        file["raw.X"][part] = getattr((X * 3).tocsc(), part)
    file["raw.var"] = record_var()


def old_obsm(file):
    made = np.zeros(N_OBS, dtype=[("X_pca", "f4", (3,)), ("X_umap", ">f8", (2,))])
    made["X_pca"] = np.arange(3 * N_OBS).reshape(N_OBS, 3)
    as_records(obsm=made)(file)


CONVERTED = {
    "as_it_is": None,
    "records_raw": old_with_raw,
    "records_obsm": old_obsm,
    "raw_csr": raw(lambda g, m: sparse(g, "X", m)),
    "raw_dense": raw(lambda g, m: array(g, "X", m.toarray(), chunks=(5, 2))),
    "layer_dense_int": lambda f: array(f["layers"], "more", np.arange(N_OBS * N_VARS).reshape(N_OBS, N_VARS)),
    "layer_csc": lambda f: sparse(f["layers"], "more", X.tocsc(), "csc_matrix"),
    "obsm_sparse": lambda f: sparse(f["obsm"], "guides", counts(N_OBS, 3)),
    "obsm_of_integers": lambda f: array(f["obsm"], "where", np.arange(N_OBS * 2).reshape(N_OBS, 2).astype(">i2")),
    "obsm_table": lambda f: frame(f["obsm"], "table", [f"c{i}" for i in range(N_OBS)], []),
    "uns": lambda f: [array(f, "uns/pca/variance", np.arange(3.0)), text(f, "uns/colors", ["#fff"])],
    "one_gene": lambda f: [
        [f.pop(n) for n in ("X", "var", "layers")],
        frame(f, "var", ["g0"], []),
        sparse(f, "X", counts(N_OBS, 1)),
    ],
    "no_genes": lambda f: [
        [f.pop(n) for n in ("X", "var", "layers")],
        frame(f, "var", [], []),
        sparse(f, "X", counts(N_OBS, 1)[:, :0]),
    ],
}


@pytest.mark.parametrize("case", sampled(CONVERTED))
def test_odd_elements_are_converted_exactly(tmp_path, case):
    assert_converted(tmp_path / "odd.h5ad", CONVERTED[case])


REFUSED = {
    "no_x": (drop("X"), "has no X. Name a layer.*'double'"),
    "only_raw": (all_of(drop("X"), drop("layers"), raw(lambda g, m: sparse(g, "X", m))), "has no X, only raw"),
    "layer_of_another_shape": (lambda f: array(f["layers"], "l", np.zeros((3, 3))), r"'layers/l'.*\(3, 3\)"),
    "layers_is_an_array": (lambda f: [f.pop("layers"), array(f, "layers", [1])], "'layers'.*an array"),
    "obsm_short": (cut("obsm/X_pca"), r"'obsm/X_pca'.*\(11, 2\)"),
    "raw_of_other_cells": (raw(lambda g, m: sparse(g, "X", m[:5])), r"'raw/X'.*\(5, 9\), expected \(12, 9\)"),
    "raw_twice": (lambda f: [raw(lambda g, m: sparse(g, "X", m))(f), array(f, "raw.X", [1])], "'raw' and 'raw.X'"),
    "no_obs": (drop("obs"), "'obs'.*is missing"),
    "no_var": (drop("var"), "'var'.*is missing"),
    "another_thing": (attribute("/", **{"encoding-type": "dataframe"}), "'/'.*'dataframe', expected 'anndata'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_broken_elements_are_refused_with_one_clear_error(tmp_path, capsys, case):
    change, says = REFUSED[case]
    path, written = write_changed(tmp_path / "odd.h5ad", change)
    assert_refused(path, says, capsys, written=written)


def test_a_layer_can_be_converted_in_place_of_x(tmp_path):
    path = write_base(tmp_path / "odd.h5ad", drop("X"))
    found = read_store(lp.convert(path, tmp_path / "a.zarr", layer="double"))
    np.testing.assert_array_equal(found.X.toarray(), 2 * X.toarray())


def test_elements_that_stores_do_not_keep_are_listed_with_a_reason(tmp_path):
    def change(file):
        array(file, "uns/pca/variance", np.arange(3.0))
        sparse(file, "obsp/distances", X)
        array(file["layers"], "words", np.array([b"x"] * N_OBS))
        array(file["obsm"], "cube", np.zeros((N_OBS, 2, 2)))
        array(file, "extra", [1])
        add_column(
            lambda g: [array(g, "complex", np.zeros(N_OBS, "c8")), mark(g.create_group("new"), "ragged", "1.0")]
        )(file)
        array(file["obs"], "unlisted", np.arange(N_OBS))

    reader = open_source(write_base(tmp_path / "odd.h5ad", change))
    reasons = dict(line.split(": ", 1) for line in reader.not_carried)
    assert list(reasons) == [
        "obs/complex", "obs/new", "obs/unlisted", "layers/words", "obsm/cube", "obsp/distances", "extra",
    ]  # fmt: skip
    assert reader.elements == {"uns/pca": 24}
    assert "complex64" in reasons["obs/complex"]
    assert "'ragged' 1.0" in reasons["obs/new"]
    with pytest.raises(LazypertError, match="complex64"):
        reader.obs_column("complex")


@pytest.mark.parametrize("n_obs", [0, 1])
def test_screens_of_no_cells_or_one_are_converted_exactly(tmp_path, n_obs):
    path = write_base(tmp_path / "odd.h5ad", n_obs=n_obs)
    lp.convert(path, tmp_path / "a.zarr")
    assert_equal(tmp_path / "a.zarr", read_with_anndata(path))
