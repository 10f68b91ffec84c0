"""Whatever a node of an AnnData becomes, reading the file ends in values or in one error that names the file."""

import h5py
import numpy as np
import pytest

from lazypert.converter import open_source
from lazypert.errors import SourceFormatError
from tests.support.h5files import N_OBS, TEXT, array, frame, mark, nullable, sparse, write_base
from tests.support.stores import counts

pytestmark = pytest.mark.slow  # about a thousand files

N = N_OBS


def every_part(file):
    nullable(file["obs"], "maybe", "integer", np.arange(N), np.zeros(N, bool))
    columns = np.array(["perturbation", "n", "note", "maybe"], dtype=object)
    file["obs"].attrs.create("column-order", columns, dtype=TEXT)
    raw = mark(file.create_group("raw"), "raw", "0.1.0")
    frame(raw, "var", [f"r{j}" for j in range(4)], [])
    sparse(raw, "X", counts(N, 4))
    array(file, "uns/pca", [1.0])


def becomes(make):
    """Put something else in the place of a node."""

    def change(file, path):
        del file[path]
        made = make(file, path)
        if made is not None:
            file[path] = made

    return change


def says(**attrs):
    return lambda file, path: file[path].attrs.update(attrs)


def forgets(file, path):
    for name in list(file[path].attrs):
        del file[path].attrs[name]


CHANGES = {
    "lost": becomes(lambda f, p: None),
    "group": becomes(lambda f, p: [f.create_group(p), None][1]),
    "number": becomes(lambda f, p: 3),
    "word": becomes(lambda f, p: "word"),
    "nothing": becomes(lambda f, p: h5py.Empty("f4")),
    "no_values": becomes(lambda f, p: np.zeros(0)),
    "numbers": becomes(lambda f, p: np.arange(N)),
    "negative": becomes(lambda f, p: -np.arange(N)),
    "table": becomes(lambda f, p: np.zeros((N, 7))),
    "booleans": becomes(lambda f, p: np.zeros(N, bool)),
    "records": becomes(lambda f, p: np.zeros(N, [("a", "i4"), ("b", "S3")])),
    "reference": becomes(lambda f, p: f["/"].ref),
    "references": becomes(lambda f, p: np.array([f["/"].ref] * N, dtype=h5py.ref_dtype)),
    "lists": becomes(lambda f, p: [f.create_dataset(p, (N,), h5py.vlen_dtype("i4")), None][1]),
    "opaque": becomes(lambda f, p: np.zeros(N, "V5")),
    "a_dtype": becomes(lambda f, p: np.dtype("f4")),
    "link_to_nowhere": becomes(lambda f, p: h5py.SoftLink("/gone")),
    "link_to_a_lost_file": becomes(lambda f, p: h5py.ExternalLink("gone.h5", "/x")),
    "link_to_itself": becomes(lambda f, p: h5py.SoftLink(f"/{p}")),
    "link_to_the_root": becomes(lambda f, p: h5py.SoftLink("/")),
    "enormous": becomes(lambda f, p: [f.create_dataset(p, (2**50,), "i1", chunks=(2**20,)), None][1]),
    "no_attributes": forgets,
    "encoded_as_dict": says(**{"encoding-type": "dict"}),
    "encoded_as_numbers": says(**{"encoding-type": np.arange(3)}),
    "encoded_as_nothing": says(**{"encoding-type": h5py.Empty("f4")}),
    "encoded_as_categorical": says(**{"encoding-type": "categorical", "encoding-version": "0.2.0"}),
    "encoded_as_csr": says(**{"encoding-type": "csr_matrix", "encoding-version": "0.1.0"}),
    "encoded_as_nullable": says(**{"encoding-type": "nullable-integer", "encoding-version": "0.1.0"}),
    "index_is_a_number": says(_index=3),
    "index_is_a_list": says(_index=np.array(["a", "b"], dtype="S")),
    "columns_are_numbers": says(**{"column-order": np.arange(3)}),
    "columns_are_nothing": says(**{"column-order": h5py.Empty("f4")}),
    "columns_are_one": says(**{"column-order": "n"}),
    "shape_of_reals": says(shape=np.array([12.0, 7.0])),
    "shape_of_text": says(shape=np.array(["a", "b"], dtype="S")),
    "shape_of_nothing": says(shape=h5py.Empty("f4")),
    "shape_enormous": says(shape=[2**62, 2**62]),
    "categories_are_a_number": says(categories=3),
    "categories_are_x": lambda f, p: f[p].attrs.update(categories=f["X"].ref),
    "categories_are_nowhere": says(categories=h5py.Reference()),
    "ordered_is_nothing": says(ordered=h5py.Empty("f4")),
    "latin1_attribute": says(x=np.array(b"\xe9", dtype=TEXT)),
}


def read_all(path):
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
        read_all(path)
    except SourceFormatError as error:
        return str(error)
    return None


@pytest.mark.parametrize("change", CHANGES)
def test_any_node_may_be_something_else(tmp_path, change):
    with h5py.File(write_base(tmp_path / "base.h5ad", every_part)) as file:
        paths = []
        file.visit(paths.append)
    assert len(paths) > 30
    whole = (tmp_path / "base.h5ad").read_bytes()
    path = tmp_path / "odd.h5ad"
    for where in paths:
        path.write_bytes(whole)
        with h5py.File(path, "r+") as file:
            CHANGES[change](file, where)
        said = error_of(path)
        assert said is None or (repr(str(path)) in said and len(said) < 1_000), (where, said)
