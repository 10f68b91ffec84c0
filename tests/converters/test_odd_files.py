"""Odd and broken files: each is converted exactly, or is one clear error and leaves nothing behind.

What AnnData reads is the oracle for the odd ones, unless the case says otherwise.
"""

import gzip
import subprocess
import sys

import h5py
import numpy as np
import pytest

import lazypert as lp
from lazypert._cli import main
from lazypert.converter import open_source
from lazypert.errors import LazypertError
from tests.support.h5files import (
    LABELS,
    N_OBS,
    N_VARS,
    PERTURBATION_ROLES,
    TEXT,
    array,
    categorical,
    dense_x,
    frame,
    mark,
    nullable,
    record_obs,
    record_var,
    records,
    replace,
    sparse,
    text,
    write_base,
)
from tests.support.oracles import assert_equal, read_with_anndata
from tests.support.stores import (
    counts,
    leftovers,
    no_sync,  # noqa: F401 - a fixture for the whole module
    read_store,
    source_row,
)

X = counts(N_OBS, N_VARS)
CODES = (np.arange(N_OBS) % 3).astype("i1")


def put(where, index, value):
    def change(file):
        file[where][index] = value

    return change


def cut(where):
    return lambda file: replace(file, where, file[where][:-1])


def longer(where):
    return lambda file: replace(file, where, np.append(file[where][:], file[where][:1]))


def drop(where):
    return lambda file: file.pop(where)


def as_type(where, dtype, **options):
    return lambda file: replace(file, where, file[where][:].astype(dtype), **options)


def attribute(where, **attrs):
    return lambda file: file[where].attrs.update(attrs)


def without(where, name):
    return lambda file: file[where].attrs.pop(name)


def all_of(*changes):
    def change(file):
        for one in changes:
            one(file)

    return change


def add_column(make):
    """Add obs columns as `make` writes them, and list them."""

    def change(file):
        obs, before = file["obs"], set(file["obs"])
        make(obs)
        listed = [*obs.attrs["column-order"], *sorted(set(obs) - before)]
        obs.attrs.create("column-order", np.array(listed, dtype=object), dtype=TEXT)

    return change


def columns_are(where, *names):
    return lambda file: file[where].attrs.create("column-order", np.array(names, dtype=object), dtype=TEXT)


def only(make):
    """X is what `make` puts there."""
    return all_of(drop("X"), make)


def old_categories(file):
    """AnnData 0.7: codes in the column, categories in a group beside."""
    obs = file["obs"]
    obs.attrs["encoding-version"] = "0.1.0"
    del obs["perturbation"]
    text(obs, "__categories/perturbation", LABELS).attrs["ordered"] = True
    obs["perturbation"] = CODES
    obs["perturbation"].attrs["categories"] = obs["__categories/perturbation"].ref


def compressed(**options):
    def change(file):
        for part in ("data", "indices", "indptr"):
            replace(file, f"X/{part}", file[f"X/{part}"][:], chunks=(5,), **options)
        replace(file, "obs/n", file["obs/n"][:], chunks=(5,), **options)

    return change


def plugin(name):
    """Compress with a filter of hdf5plugin."""
    return lambda file: compressed(**getattr(pytest.importorskip("hdf5plugin"), name)())(file)


OLD_LABELS = (("perturbation_categories", np.array(LABELS, "S13")),)


def old(codes=CODES, uns=OLD_LABELS, more=None, **others):
    return lambda file: records(file, record_obs(codes, **(more or {})), record_var(), uns, **others)


def old_with_raw(file):
    old()(file)
    file.create_group("raw.X").attrs.update({"h5sparse_format": "csc", "h5sparse_shape": X.shape})
    for part in ("data", "indices", "indptr"):
        file["raw.X"][part] = getattr((X * 3).tocsc(), part)
    file["raw.var"] = record_var()


def old_obsm(file):
    made = np.zeros(N_OBS, dtype=[("X_pca", "f4", (3,)), ("X_umap", ">f8", (2,))])
    made["X_pca"] = np.arange(3 * N_OBS).reshape(N_OBS, 3)
    old(obsm=made)(file)


def text_records(file):
    """Text of variable length inside records."""
    made = record_obs(CODES, [f"é{i}" for i in range(N_OBS)], dtype=TEXT)
    records(file, made, record_var())


def raw(make):
    def change(file):
        group = mark(file.create_group("raw"), "raw", "0.1.0")
        frame(group, "var", [f"r{j}" for j in range(N_VARS + 2)], ["kind"])
        categorical(group["var"], "kind", np.arange(N_VARS + 2) % 2, ["a", "b"])
        make(group, counts(N_OBS, N_VARS + 2, seed=5))

    return change


def unsorted(file):
    matrix = X.copy()
    for row in range(N_OBS):
        here = slice(matrix.indptr[row], matrix.indptr[row + 1])
        matrix.indices[here], matrix.data[here] = matrix.indices[here][::-1], matrix.data[here][::-1]
    replace(file, "X/indices", matrix.indices)
    replace(file, "X/data", matrix.data)


def linked(kind):
    """X lies elsewhere, and is there."""

    def change(file):
        other = f"{file.filename}.other"
        with h5py.File(other, "w") as far:
            file.copy("X", far)
        if kind == "external":
            del file["X"]
            file["X"] = h5py.ExternalLink(other, "/X")
        elif kind == "soft":
            file.create_group("uns")
            file.move("X", "uns/matrix")
            file["X"] = h5py.SoftLink("/uns/matrix")
        else:
            view(file, other, file["X/data"].shape[0])

    return change


def view(file, other, n, name="X/data", shown=None, far_name=None):
    """A dataset becomes a view of one in another file."""
    dtype, whole = file[name].dtype, file[name].shape
    layout = h5py.VirtualLayout(whole, dtype)
    layout[: n if shown is None else shown] = h5py.VirtualSource(other, far_name or name, (n,), dtype)[:shown]
    del file[name]
    file.create_virtual_dataset(name, layout)


CONVERTED = {
    "as_it_is": None,
    "old_categories": old_categories,
    "records": old(),
    "records_of_text": text_records,
    "records_one_category": old(np.zeros(N_OBS, "i1"), [("perturbation_categories", np.array([b"only"]))]),
    "records_codes_beyond_categories": old(CODES, [("perturbation_categories", np.array([b"a", b"b"]))]),
    "records_missing_labels": old(CODES - np.int8(1)),
    "records_of_vectors": old(more={"n": np.arange(N_OBS)}),
    "records_raw": old_with_raw,
    "records_obsm": old_obsm,
    "raw_csr": raw(lambda g, m: sparse(g, "X", m)),
    "raw_dense": raw(lambda g, m: array(g, "X", m.toarray(), chunks=(5, 2))),
    "fixed_length_text": as_type("obs/note", h5py.string_dtype(length=5)),
    "fixed_length_index": as_type("obs/_index", "S5"),
    "text_marked_ascii": as_type("obs/_index", h5py.string_dtype("ascii")),
    "index_of_another_name": all_of(lambda f: f.move("obs/_index", "obs/id"), attribute("obs", _index="id")),
    "index_that_is_a_column": all_of(attribute("obs", _index="note")),
    "index_of_numbers": lambda f: [f.pop("obs/_index"), array(f["obs"], "_index", np.arange(N_OBS) * 3)],
    "names_twice": lambda f: replace(f, "obs/_index", np.array(["same"] * N_OBS, dtype=object), dtype=TEXT),
    "no_columns": columns_are("obs"),
    "column_not_listed": columns_are("obs", "note", "perturbation"),
    "nullable": add_column(
        lambda g: [
            nullable(g, "maybe_i", "integer", np.arange(N_OBS, dtype="u2"), CODES == 1),
            nullable(g, "maybe_b", "boolean", CODES > 0, CODES == 1),
            nullable(g, "maybe_s", "string-array", [f"s{i}" for i in range(N_OBS)], CODES == 1),
        ]
    ),
    "ordered": attribute("obs/perturbation", ordered=True),
    "categories_of_integers": add_column(lambda g: categorical(g, "k", CODES, [5, 3, 9])),
    "categories_of_floats": add_column(lambda g: categorical(g, "k", CODES, [0.5, -1.0, 9.25])),
    "categories_of_booleans": add_column(lambda g: categorical(g, "k", CODES % 2, [False, True])),
    "codes_int64": as_type("obs/perturbation/codes", "i8"),
    "codes_unsigned": as_type("obs/perturbation/codes", "u1"),
    "perturbation_missing_somewhere": put("obs/perturbation/codes", slice(3, 6), -1),
    "numbers_of_every_width": add_column(
        lambda g: [array(g, t, np.arange(N_OBS).astype(t)) for t in ("u1", "i2", "u4", "i8", "f4", "?")]
    ),
    "column_names": add_column(lambda g: [array(g, n, np.arange(N_OBS)) for n in ("c", "X", ".hidden", "é 漢", "0")]),
    "indices_int64": all_of(as_type("X/indices", "i8"), as_type("X/indptr", "i8")),
    "indices_unsigned": all_of(as_type("X/indices", "u4"), as_type("X/indptr", "u8")),
    "indices_narrow": all_of(as_type("X/indices", "u1"), as_type("X/indptr", "i2")),
    "indices_unsorted": unsorted,
    "indices_repeated": all_of(put("X/indices", slice(0, 3), 2)),
    "explicit_zeros": put("X/data", slice(0, 9, 2), 0),
    "nothing_stored": only(lambda f: sparse(f, "X", X * 0)),
    "no_values": only(lambda f: sparse(f, "X", type(X)(X.shape))),
    "csc": only(lambda f: sparse(f, "X", X.tocsc(), "csc_matrix", chunks=(4,))),
    "dense": lambda f: dense_x(f, X.toarray()),
    "dense_by_columns": lambda f: dense_x(f, X.toarray(), chunks=(N_OBS, 1), compression="gzip"),
    "dense_in_tiles": lambda f: dense_x(f, X.toarray(), chunks=(5, 3), compression="lzf"),
    "dense_not_finite": lambda f: dense_x(f, np.where(X.toarray() > 5, np.nan, np.inf)),
    "dense_with_fortran_order": lambda f: dense_x(f, np.asfortranarray(X.toarray())),
    "float64": lambda f: replace(f, "X/data", X.data * np.pi),
    "float16_dense": lambda f: dense_x(f, X.toarray().astype("f2") / 4),
    "bool": lambda f: dense_x(f, X.toarray() > 0),
    "int8": lambda f: replace(f, "X/data", -X.data.astype("i1")),
    "uint8": as_type("X/data", "u1"),
    "int64_large": lambda f: replace(f, "X/data", X.data.astype("i8") + 2**60),
    "layer_dense_int": lambda f: array(f["layers"], "more", np.arange(N_OBS * N_VARS).reshape(N_OBS, N_VARS)),
    "layer_csc": lambda f: sparse(f["layers"], "more", X.tocsc(), "csc_matrix"),
    "obsm_sparse": lambda f: sparse(f["obsm"], "guides", counts(N_OBS, 3)),
    "obsm_of_integers": lambda f: array(f["obsm"], "where", np.arange(N_OBS * 2).reshape(N_OBS, 2).astype(">i2")),
    "obsm_table": lambda f: frame(f["obsm"], "table", [f"c{i}" for i in range(N_OBS)], []),
    "uns": lambda f: [array(f, "uns/pca/variance", np.arange(3.0)), text(f, "uns/colors", ["#fff"])],
    "gzip": compressed(compression="gzip", shuffle=True, fletcher32=True),
    "lzf": compressed(compression="lzf"),
    "blosc": plugin("Blosc"),
    "zstd": plugin("Zstd"),
    "lz4": plugin("LZ4"),
    "bitshuffle": plugin("Bitshuffle"),
    "link_inside": linked("soft"),
    "link_to_another_file": linked("external"),
    "view_of_another_file": linked("view"),
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


def make(path, change):
    write_base(path, change)
    others = [p.name for p in path.parent.iterdir()]
    return path, others


@pytest.mark.parametrize("case", CONVERTED)
def test_an_odd_file_is_converted_exactly(tmp_path, case):
    path, others = make(tmp_path / "odd.h5ad", CONVERTED[case])
    lp.convert(path, tmp_path / "a.zarr")
    assert_equal(tmp_path / "a.zarr", read_with_anndata(path))
    assert leftovers(tmp_path, *others, "a.zarr") == []


BIG_ENDIAN = {
    "sparse": all_of(as_type("X/data", ">f4"), as_type("X/indices", ">i4"), as_type("X/indptr", ">i8")),
    "dense": lambda f: dense_x(f, X.toarray().astype(">i2")),
    "columns": all_of(as_type("obs/n", ">i4"), as_type("obs/perturbation/codes", ">i2"), as_type("var/length", ">f8")),
    "embedding": as_type("obsm/X_pca", ">f8"),
}


@pytest.mark.parametrize("case", BIG_ENDIAN)
def test_byte_order_changes_nothing(tmp_path, case):
    """SciPy and pandas refuse the foreign one, so that the same file in ours is the oracle."""
    lp.convert(write_base(tmp_path / "odd.h5ad", BIG_ENDIAN[case]), tmp_path / "a.zarr")
    expected = read_with_anndata(write_base(tmp_path / "same.h5ad"))
    if case == "columns":
        expected.obs["n"] = expected.obs["n"].astype("i4")
    assert_equal(tmp_path / "a.zarr", expected)


GROUPED = ["old_categories", "records", "perturbation_missing_somewhere", "csc", "dense_in_tiles"]


@pytest.mark.parametrize("case", GROUPED)
def test_an_odd_file_is_grouped_exactly(tmp_path, case):
    path, _ = make(tmp_path / "odd.h5ad", CONVERTED[case])
    lp.convert(path, tmp_path / "a.zarr", **PERTURBATION_ROLES)
    assert_equal(tmp_path / "a.zarr", read_with_anndata(path), rows=source_row(tmp_path / "a.zarr"))


@pytest.mark.parametrize("size", [512, 2048])
def test_a_user_block_may_stand_before_the_signature(tmp_path, size):
    path = write_base(tmp_path / "odd.h5ad", userblock_size=size)
    with path.open("r+b") as file:
        file.write(b"anything")
    lp.convert(path, tmp_path / "a.zarr")
    assert_equal(tmp_path / "a.zarr", read_with_anndata(path))


def test_a_matrix_other_than_x_can_take_its_place(tmp_path):
    path = write_base(tmp_path / "odd.h5ad", drop("X"))
    found = read_store(lp.convert(path, tmp_path / "a.zarr", layer="double"))
    np.testing.assert_array_equal(found.X.toarray(), 2 * X.toarray())


def test_what_a_store_cannot_hold_is_listed_with_its_reason(tmp_path):
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
    said = dict(line.split(": ", 1) for line in reader.not_carried)
    assert list(said) == [
        "obs/complex", "obs/new", "obs/unlisted", "layers/words", "obsm/cube", "obsp/distances", "uns/pca", "extra",
    ]  # fmt: skip
    assert "complex64" in said["obs/complex"]
    assert "'ragged' 1.0" in said["obs/new"]
    with pytest.raises(LazypertError, match="complex64"):
        reader.obs_column("complex")


def gone_view(**options):
    return lambda file: view(file, "gone.h5", file["X/data"].shape[0], **options)


def other_view(**options):
    """A view of a file that is there, of values that are not."""

    def change(file):
        n = file["X/data"].shape[0]
        with h5py.File(f"{file.filename}.other", "w") as far:
            far["X/data"] = np.ones(n - 1, "f4")
        view(file, f"{file.filename}.other", n, **options)

    return change


def outside(file):
    """Values in a file without a format, which is too short."""
    n = file["X/data"].shape[0]
    del file["X/data"]
    file["X"].create_dataset("data", (n,), "f4", external=[(f"{file.filename}.raw", 0, 4 * n)])


def unwritten(part):
    def change(file):
        shape, dtype = file[part].shape, file[part].dtype
        del file[part]
        file.create_dataset(part, shape, dtype, chunks=(8,))

    return change


def latin1(where):
    def change(file):
        values = np.array([b"caf\xe9"] * file[where].shape[0], dtype=object)
        replace(file, where, values, dtype=TEXT)

    return change


def loop(where):
    return all_of(drop(where), lambda f: f.__setitem__(where, h5py.SoftLink(f"/{where}")))


def broken_link(where, link):
    return all_of(drop(where), lambda f: f.__setitem__(where, link))


def rename_column(name):
    return all_of(columns_are("obs", "perturbation", "note", name))


REFUSED = {
    "x_linked_to_a_lost_file": (
        broken_link("X", h5py.ExternalLink("gone.h5", "/X")),
        "'X'.*'gone.h5', which is not there",
    ),
    "x_linked_to_nowhere": (broken_link("X", h5py.SoftLink("/gone")), "'X'.*'/gone', which is not there"),
    "x_linked_to_itself": (loop("X"), "'X'.*circle"),
    "column_linked_to_nowhere": (broken_link("obs/n", h5py.SoftLink("/gone")), "'obs/n'.*'/gone'"),
    "layer_linked_to_nowhere": (broken_link("layers/double", h5py.SoftLink("/gone")), "'layers/double'.*'/gone'"),
    "obsm_linked_to_a_lost_file": (
        broken_link("obsm/X_pca", h5py.ExternalLink("gone.h5", "a")),
        "'obsm/X_pca'.*gone.h5",
    ),
    "view_of_a_lost_file": (gone_view(), "'X/data'.*gone.h5' is not there"),
    "view_with_gaps": (
        lambda f: [
            linked("view")(f),
            f.pop("X/data"),
            f.copy("layers/double/data", "X/data"),
            view(f, f"{f.filename}.other", 5, shown=5),
        ],
        r"'X/data'.*5 of its \d+ values",
    ),
    "view_of_too_little": (other_view(), "'X/data'.*less than what is shown"),
    "view_of_a_lost_array": (other_view(far_name="lost"), "'X/data'.*'lost' is not in"),
    "values_outside": (outside, r"'X/data'.*odd.h5ad.raw"),
    "data_never_written": (unwritten("X/data"), "'X/data'.*never written from element 0"),
    "indices_never_written": (unwritten("X/indices"), "'X/indices'.*never written from element 0"),
    "negative_index": (put("X/indices", 3, -1), "'X/indices'.*holds -1 at element 3"),
    "index_too_large": (put("X/indices", 3, N_VARS), "'X/indices'.*holds 7 at element 3"),
    "index_beyond_32_bits": (all_of(as_type("X/indices", "i8"), put("X/indices", 3, 2**32)), "'X/indices'.*4294967296"),
    "index_of_a_column_too_large": (
        all_of(only(lambda f: sparse(f, "X", X.tocsc(), "csc_matrix")), put("X/indices", 0, N_OBS)),
        "'X/indices'.*holds 12",
    ),
    "layer_index_too_large": (put("layers/double/indices", 0, 99), "'layers/double/indices'.*holds 99"),
    "indptr_not_from_zero": (put("X/indptr", 0, 1), "'X/indptr'.*starts at 1"),
    "indptr_decreases": (put("X/indptr", 5, 0), "'X/indptr'.*decreases"),
    "indptr_past_the_end": (put("X/indptr", -1, 10**6), "'X/indptr'.*ends at 1,000,000"),
    "indptr_short": (cut("X/indptr"), "'X/indptr'.*has 12 elements, expected 13"),
    "indptr_beyond_64_bits": (
        all_of(as_type("X/indptr", "u8"), put("X/indptr", -1, 2**64 - 1)),
        "'X/indptr'.*18446744073709551615",
    ),
    "data_shorter_than_indices": (cut("X/data"), "'X/indices'.*as many as data"),
    "both_shorter_than_indptr": (all_of(cut("X/data"), cut("X/indices")), "'X/indptr'.*ends at"),
    "indices_of_floats": (as_type("X/indices", "f8"), "'X/indices'.*float64, expected integers"),
    "no_indptr": (drop("X/indptr"), "'X/indptr'.*is missing"),
    "no_data": (drop("X/data"), "'X/data'.*is missing"),
    "data_is_a_group": (all_of(drop("X/data"), lambda f: f.create_group("X/data")), "'X/data'.*is a group"),
    "data_in_a_table": (lambda f: replace(f, "X/data", f["X/data"][:][None]), "'X/data'.*one dimension"),
    "integers_beyond_64_bits": (
        lambda f: replace(f, "X/data", np.full(X.nnz, 2**63, "u8")),
        "'X/data'.*9223372036854775808",
    ),
    "shape_wrong": (attribute("X", shape=[N_OBS, N_VARS + 1]), r"'X'.*\(12, 8\), expected \(12, 7\)"),
    "shape_of_three": (attribute("X", shape=[1, 2, 3]), r"'X'.*\[1, 2, 3\] as its shape"),
    "shape_negative": (attribute("X", shape=[-1, 2]), r"'X'.*\[-1, 2\] as its shape"),
    "shape_of_text": (attribute("X", shape="12x7"), "'X'.*'12x7' as its shape"),
    "no_shape": (without("X", "shape"), "'X'.*None as its shape"),
    "x_of_three_dimensions": (lambda f: dense_x(f, np.zeros((N_OBS, N_VARS, 2))), r"'X'.*\(12, 7, 2\)"),
    "x_of_one_dimension": (lambda f: dense_x(f, np.zeros(N_OBS)), r"'X'.*\(12,\)"),
    "x_transposed": (lambda f: dense_x(f, X.toarray().T), r"'X'.*\(7, 12\), expected \(12, 7\)"),
    "x_of_text": (lambda f: dense_x(f, np.full((N_OBS, N_VARS), b"x")), "'X'.*expected numbers"),
    "x_of_complex_numbers": (lambda f: dense_x(f, X.toarray().astype("c16")), "'X'.*complex128"),
    "x_of_long_doubles": (lambda f: dense_x(f, X.toarray().astype("g")), "'X'.*float128"),
    "data_of_text": (lambda f: replace(f, "X/data", np.full(X.nnz, b"x")), "'X/data'.*expected numbers"),
    "x_of_unknown_encoding": (attribute("X", **{"encoding-type": "coo_matrix"}), "'X'.*'coo_matrix 0.1.0'"),
    "x_of_a_later_version": (attribute("X", **{"encoding-version": "9.0"}), "'X'.*'csr_matrix 9.0'"),
    "x_without_encoding": (without("X", "encoding-type"), "'X'"),
    "no_x": (drop("X"), "has no X. Name a layer.*'double'"),
    "only_raw": (all_of(drop("X"), drop("layers"), raw(lambda g, m: sparse(g, "X", m))), "has no X, only raw"),
    "layer_of_another_shape": (lambda f: array(f["layers"], "l", np.zeros((3, 3))), r"'layers/l'.*\(3, 3\)"),
    "layers_is_an_array": (lambda f: [f.pop("layers"), array(f, "layers", [1])], "'layers'.*an array"),
    "obsm_short": (cut("obsm/X_pca"), r"'obsm/X_pca'.*\(11, 2\)"),
    "raw_of_other_cells": (raw(lambda g, m: sparse(g, "X", m[:5])), r"'raw/X'.*\(5, 9\), expected \(12, 9\)"),
    "raw_twice": (lambda f: [raw(lambda g, m: sparse(g, "X", m))(f), array(f, "raw.X", [1])], "'raw' and 'raw.X'"),
    "no_obs": (drop("obs"), "'obs'.*is missing"),
    "no_var": (drop("var"), "'var'.*is missing"),
    "obs_is_an_array": (all_of(drop("obs"), lambda f: array(f, "obs", np.zeros(N_OBS))), "'obs'.*a dataframe"),
    "obs_without_encoding": (without("obs", "encoding-type"), "'obs'.*a dataframe"),
    "obs_without_index": (drop("obs/_index"), "'obs/_index'.*is missing"),
    "obs_names_no_index": (without("obs", "_index"), "'obs'.*no attribute '_index'"),
    "obs_lists_no_columns": (without("obs", "column-order"), "'obs'.*no attribute 'column-order'"),
    "index_short": (cut("obs/_index"), "'obs/perturbation/codes'.*has 12 values, expected 11"),
    "index_with_missing_names": (
        lambda f: [f.pop("obs/_index"), nullable(f["obs"], "_index", "string-array", ["a"] * N_OBS, CODES == 2)],
        "'obs/_index/values'.*no name at row 2",
    ),
    "column_listed_but_absent": (drop("obs/n"), "'obs/n'.*is missing"),
    "column_listed_twice": (columns_are("obs", "n", "note", "n"), "'obs'.*'n' more than once"),
    "column_short": (cut("obs/n"), "'obs/n'.*has 11 values, expected 12"),
    "column_long": (longer("obs/n"), "'obs/n'.*has 13 values, expected 12"),
    "var_column_short": (cut("var/length"), "'var/length'.*has 6 values"),
    "codes_short": (cut("obs/perturbation/codes"), "'obs/perturbation/codes'.*has 11 values"),
    "code_too_large": (put("obs/perturbation/codes", 0, 3), "'obs/perturbation/codes'.*code 3.*-1 to 2"),
    "code_too_small": (put("obs/perturbation/codes", 0, -2), "'obs/perturbation/codes'.*code -2"),
    "codes_of_floats": (as_type("obs/perturbation/codes", "f4"), "'obs/perturbation/codes'.*float32"),
    "categories_twice": (
        lambda f: replace(f, "obs/perturbation/categories", np.array(["a", "b", "a"], dtype=object), dtype=TEXT),
        "'obs/perturbation/codes'.*unique",
    ),
    "categories_with_nan": (add_column(lambda g: categorical(g, "k", CODES, [0.5, np.nan, 1])), "'obs/k/codes'.*null"),
    "no_categories": (drop("obs/perturbation/categories"), "'obs/perturbation/categories'.*is missing"),
    "old_code_too_large": (all_of(old_categories, put("obs/perturbation", 0, 9)), "'obs/perturbation'.*code 9"),
    "old_categories_lost": (
        all_of(old_categories, attribute("obs/perturbation", categories="__categories/lost")),
        "__categories/lost'.*is missing",
    ),
    "mask_short": (
        all_of(add_column(lambda g: nullable(g, "k", "integer", np.arange(N_OBS), CODES == 1)), cut("obs/k/mask")),
        "'obs/k/mask'.*has 11 values",
    ),
    "values_short": (
        all_of(add_column(lambda g: nullable(g, "k", "integer", np.arange(N_OBS), CODES == 1)), cut("obs/k/values")),
        "'obs/k/values'.*has 11 values",
    ),
    "mask_of_integers": (
        add_column(lambda g: nullable(g, "k", "integer", np.arange(N_OBS), np.zeros(N_OBS, "i4"))),
        "'obs/k/mask'.*booleans",
    ),
    "latin1_names": (latin1("obs/_index"), "'obs/_index'.*not UTF-8"),
    "latin1_column": (latin1("obs/note"), "'obs/note'.*not UTF-8"),
    "latin1_categories": (latin1("obs/perturbation/categories"), "'obs/perturbation/categories'.*not UTF-8"),
    "latin1_genes": (latin1("var/_index"), "'var/_index'.*not UTF-8"),
    "column_named_zarr_json": (rename_column("zarr.json"), "'obs'.*named 'zarr.json'.*Rename it"),
    "column_named_dots": (rename_column(".."), r"'obs'.*named '\.\.'.*Rename it"),
    "column_named_with_a_slash": (
        all_of(lambda f: array(f["obs"], "S/G2M", np.arange(N_OBS)), rename_column("S/G2M")),
        "'obs'.*named 'S/G2M'.*Rename it",
    ),
    "records_code_too_small": (old(CODES - np.int8(5)), "code -5"),
    "another_thing": (attribute("/", **{"encoding-type": "dataframe"}), "'/'.*'dataframe', expected 'anndata'"),
}


def assert_refused(path, says, capsys, *, before):
    """One error of ours that names the file, from the function and from the command, and nothing written."""
    with pytest.raises(LazypertError, match=says) as caught:
        lp.convert(path, path.parent / "a.zarr", **PERTURBATION_ROLES)
    assert repr(str(path)) in str(caught.value)
    assert len(str(caught.value)) < 1_000
    arguments = [str(path), str(path.parent / "a.zarr"), "--pert-col", "perturbation"]
    capsys.readouterr()
    assert main(["convert", *arguments]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("lazypert: error: ") == 1
    assert said.err.startswith("lazypert: error: ")
    assert "Traceback" not in said.err
    assert leftovers(path.parent, *before) == []


@pytest.mark.parametrize("case", REFUSED)
def test_a_broken_file_is_one_clear_error(tmp_path, capsys, case):
    change, says = REFUSED[case]
    path, others = make(tmp_path / "odd.h5ad", change)
    assert_refused(path, says, capsys, before=others)


def truncated(path, good):
    path.write_bytes(good[: len(good) // 2])


def last_chunk_damaged(path, _):
    write_base(path, compressed(compression="gzip"))
    with h5py.File(path) as file:
        node = file["X/data"].id
        chunk = node.get_chunk_info(node.get_num_chunks() - 1)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
    path.write_bytes(data)


NOT_HDF5 = {
    "truncated": (truncated, "cut short or damaged"),
    "only_a_signature": (lambda path, good: path.write_bytes(good[:8]), "cut short or damaged"),
    "empty": (lambda path, _: path.write_bytes(b""), "is empty"),
    "web_page": (lambda path, _: path.write_text("<!DOCTYPE html><html>404"), "web page"),
    "gzip": (lambda path, good: path.write_bytes(gzip.compress(good)), "gzip"),
    "text": (lambda path, _: path.write_text("cell,gene\n"), "starts with the bytes"),
    "zip": (lambda path, _: path.write_bytes(b"PK\x03\x04rest"), "zip"),
    "folder": (lambda path, _: path.mkdir(), "folder"),
    "noise": (lambda path, good: path.write_bytes(good[:8] + bytes(range(256)) * 40), "cut short or damaged"),
    "last_chunk_damaged": (last_chunk_damaged, "'X/data'.*cannot be read"),
}


@pytest.mark.parametrize("case", NOT_HDF5)
def test_a_file_that_is_none_is_one_clear_error(tmp_path, capsys, case):
    damage, says = NOT_HDF5[case]
    good = write_base(tmp_path / "good.h5ad").read_bytes()
    path = tmp_path / "odd.h5ad"
    damage(path, good)
    assert_refused(path, says, capsys, before=["good.h5ad", "odd.h5ad"])


@pytest.mark.parametrize("n_obs", [0, 1])
def test_a_screen_of_hardly_any_cells(tmp_path, n_obs):
    path = write_base(tmp_path / "odd.h5ad", n_obs=n_obs)
    lp.convert(path, tmp_path / "a.zarr")
    assert_equal(tmp_path / "a.zarr", read_with_anndata(path))


def command(path, *, first="pass"):
    """Run the command in a process of its own."""
    code = f"import sys; {first}; from lazypert._cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, "convert", path, path.parent / "a.zarr"],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("case", ["view_of_a_lost_file", "code_too_large"])
def test_the_command_of_a_shell_says_the_same(tmp_path, case):
    path, others = make(tmp_path / "odd.h5ad", REFUSED[case][0])
    done = command(path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"lazypert: error: {str(path)!r} is not a valid AnnData file at ")
    assert done.stderr.count("\n") == 1
    assert leftovers(tmp_path, *others) == []


def test_a_filter_that_is_not_installed_is_named(tmp_path):
    path, others = make(tmp_path / "odd.h5ad", plugin("Zstd"))
    done = command(path, first="sys.modules['hdf5plugin'] = None")
    assert done.returncode == 1
    assert "HDF5 filter 'zstd' (number 32015), which is not installed" in done.stderr
    assert "pip install hdf5plugin" in done.stderr
    assert "Traceback" not in done.stderr
    assert leftovers(tmp_path, *others) == []
