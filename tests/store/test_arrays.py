"""Text and dense arrays return what AnnData reads, and raise an error for missing or damaged files."""

import numpy as np
import pytest

from lazypert.errors import StoreDamagedError
from lazypert.store.arrays import read_checked
from lazypert.store.byte_reader import LocalReader
from lazypert.store.store import Store
from tests.support.stores import converted, copied, dense, read_store, small_grids


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        small_grids(patch)
        return converted(tmp_path_factory.mktemp("arrays"))[1]


@pytest.fixture(scope="module")
def expected(made):
    return read_store(made)


def test_strings_equal_those_of_anndata(made, expected):
    names = Store(made).open_strings("obs/_index")
    assert (len(names), repr(names)) == (90, "StringArray('obs/_index', 90 strings)")
    assert names.read(30, 70).tolist() == expected.obs_names[30:70].tolist()
    assert names.read(5, 5).tolist() == []


def test_embeddings_equal_those_of_anndata(made, expected):
    found = Store(made).obsm["X_pca"]
    assert (found.shape, found.dtype) == ((90, 3), np.float32)
    assert repr(found) == "DenseArray('obsm/X_pca', 90 cells x 3 features, float32)"
    np.testing.assert_array_equal(found[5:9], expected.obsm["X_pca"][5:9])
    np.testing.assert_array_equal(found.oindex[np.array([7, 2, 2])], expected.obsm["X_pca"][[7, 2, 2]])
    np.testing.assert_array_equal(
        dense(expected.obsm["guides"]), Store(made).open_matrix("obsm/guides").read(0, 90).to_dense()
    )


@pytest.mark.parametrize(
    ("path", "read"),
    [
        ("obs/_index/c/0", lambda store: store.read_strings("obs/_index")),
        ("obsm/X_pca/c/0/0", lambda store: store.obsm["X_pca"][:3]),
    ],
    ids=["strings", "dense"],
)
def test_a_missing_file_raises_an_error_that_names_it(tmp_path, made, path, read):
    broken = copied(made, tmp_path / "broken.zarr")
    (broken / path).unlink()
    with pytest.raises(StoreDamagedError, match=f"{path}: the file is missing"):
        read(Store(broken))


def test_errors_of_zarr_name_the_files_that_were_read(tmp_path):
    for name in "ab":
        (tmp_path / name).touch()

    def fail():
        raise RuntimeError("bad header")

    with pytest.raises(StoreDamagedError, match="a to b: bad header"):
        read_checked(LocalReader(tmp_path), ["a", "b"], fail)
    with pytest.raises(StoreDamagedError, match="b: bad header"):
        read_checked(LocalReader(tmp_path), ["b"], fail)
