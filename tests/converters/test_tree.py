"""What a tree does for every reader: native byte order, and errors that name the file and the path inside it."""

import h5py
import numpy as np
import pytest

import lazypert as lp
from lazypert_converters._hdf5 import Hdf5Tree
from lazypert_converters._tree import join, kind_of, native
from tests.support.h5changes import X, all_of, as_type
from tests.support.h5files import TEXT, dense_x, write_base
from tests.support.oracles import assert_equal, read_with_anndata

BIG_ENDIAN = {
    "sparse": all_of(as_type("X/data", ">f4"), as_type("X/indices", ">i4"), as_type("X/indptr", ">i8")),
    "dense": lambda f: dense_x(f, X.toarray().astype(">i2")),
    "columns": all_of(as_type("obs/n", ">i4"), as_type("obs/perturbation/codes", ">i2"), as_type("var/length", ">f8")),
    "embedding": as_type("obsm/X_pca", ">f8"),
}


@pytest.mark.parametrize("case", BIG_ENDIAN)
def test_byte_order_changes_nothing(tmp_path, case):
    """SciPy and pandas refuse foreign byte order, so the oracle is the same file in native order."""
    lp.convert(write_base(tmp_path / "odd.h5ad", BIG_ENDIAN[case]), tmp_path / "a.zarr")
    expected = read_with_anndata(write_base(tmp_path / "same.h5ad"))
    if case == "columns":
        expected.obs["n"] = expected.obs["n"].astype("i4")
    assert_equal(tmp_path / "a.zarr", expected)


def test_errors_name_the_file_and_the_path_inside_it(tmp_path):
    tree = Hdf5Tree(tmp_path / "a.h5", "10x file")
    assert str(tree.fault("matrix/data", "is a group", "an array", "Write it again.")) == (
        f"{str(tmp_path / 'a.h5')!r} is not a valid 10x file at 'matrix/data': it is a group, expected an array. "
        "Write it again. No store was made."
    )
    assert " at '/': " in str(tree.fault("", "is a group", "an array"))


@pytest.mark.parametrize(
    ("kind", "dtypes"),
    [
        ("number", ["?", "u1", "f2", ">f8"]),
        ("text", ["S3", "U3", TEXT]),
        ("record", [[("a", "i4"), ("b", "S3")]]),
        ("other", ["g", "c8", "O", "V5", h5py.ref_dtype]),
    ],
)
def test_dtypes_are_classified(kind, dtypes):
    assert [kind_of(np.dtype(dtype)) for dtype in dtypes] == [kind] * len(dtypes)


def test_native_values_are_not_copied():
    values = np.arange(3)
    assert native(values) is values
    assert native(values.astype(">i8")).dtype == values.dtype


def test_paths_are_joined_without_empty_names():
    assert join("", "obs", "", "codes") == "obs/codes"
    assert join("") == ""
