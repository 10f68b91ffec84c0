"""Planning chooses matrices and names, and refuses what a store cannot hold."""

import h5py
import numpy as np
import pytest
from scipy import sparse

import lazypert as lp
from lazypert.errors import NotCopiedWarning, SourceFormatError
from lazypert.store.store import Store
from tests.support.stores import (
    ROLES,
    converted,
    dense,
    layers_of,
    leftovers,
    read_store,
    screen,
    with_layer,
    write,
)


def test_a_file_without_x_needs_a_layer(tmp_path):
    adata = with_layer()
    adata.X = None
    path = write(adata, tmp_path / "a.h5ad")
    with pytest.raises(SourceFormatError, match=r"has no X.*layer=.*lognorm"):
        lp.convert(path, tmp_path / "s.zarr", **ROLES)
    assert leftovers(tmp_path, "a.h5ad") == []
    result = read_store(lp.convert(path, tmp_path / "s.zarr", layer="lognorm", **ROLES))
    assert layers_of(result) == set()


def test_a_layer_named_x_is_not_overwritten(tmp_path):
    adata = with_layer()
    adata.layers["X"] = adata.X * 2
    path = write(adata, tmp_path / "a.h5ad")
    with pytest.raises(SourceFormatError, match="layers/X"):
        lp.convert(path, tmp_path / "s.zarr", layer="lognorm", **ROLES)
    result = read_store(lp.convert(path, tmp_path / "s.zarr", layer="X", **ROLES))
    np.testing.assert_array_equal(dense(result.X), 2 * dense(result.layers["X"]))


@pytest.mark.parametrize("name", ["zarr.json", "é" * 128])
def test_a_layer_with_a_name_that_no_array_can_have_is_refused(tmp_path, name):
    path = write(with_layer("fine"), tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        file.move("layers/fine", f"layers/{name}")
    with pytest.raises(SourceFormatError, match="cannot be the name of a Zarr array"):
        lp.convert(path, tmp_path / "s.zarr", **ROLES)
    assert leftovers(tmp_path, "a.h5ad") == []


def test_what_a_store_cannot_hold_is_listed_in_its_warnings(tmp_path):
    adata = screen(lean=True)
    adata.obsp["near"] = sparse.eye(90, format="csr")
    adata.obsp["far"] = sparse.eye(90, format="csr")
    with pytest.warns(NotCopiedWarning, match="obsp/near was not copied: stores do not keep obsp") as caught:
        _, store = converted(tmp_path, adata)
    assert len(caught) == 1
    assert caught[0].filename == converted.__code__.co_filename  # the caller of lp.convert
    notes = Store(store).attrs["warnings"]
    assert sorted(w.partition(": ")[2].partition(" was not copied: ")[0] for w in notes) == ["obsp/far", "obsp/near"]


@pytest.mark.filterwarnings("error")
def test_nothing_is_left_behind_where_warnings_are_errors(tmp_path):
    adata = screen(lean=True)
    adata.obsp = {f"graph{i}": sparse.eye(90, format="csr") for i in range(8)}
    with pytest.raises(NotCopiedWarning, match="and 3 more"):
        converted(tmp_path, adata)
    assert leftovers(tmp_path, "screen.h5ad") == []


@pytest.mark.filterwarnings("error::lazypert.errors.NotCopiedWarning")
def test_a_file_that_is_copied_completely_gives_no_warning(tmp_path):
    converted(tmp_path, screen())


def names_of(reader_names, tmp_path):
    paths = []
    for number, names in enumerate(reader_names):
        adata = screen(len(names), seed=number, lean=True)
        adata.obs_names = names
        paths.append(write(adata, tmp_path / f"{number}.h5ad"))
    return Store(lp.convert(paths, tmp_path / "s.zarr")).attrs["warnings"]


REPEATED_NAMES = {
    "unique": ([["a", "b"], ["c", "d"]], []),
    "in_a_file": ([["a", "b", "a", "a"]], ["0.h5ad: 2 cells have the name"]),
    "over_files": ([["a", "b", "c"], ["b", "d"], ["b", "c"]], ["2 cell names occur in more than one file"]),
    "both": ([["a", "a"], ["a", "b"]], ["0.h5ad: 1 cells have the name", "1 cell names occur in more than one file"]),
}


@pytest.mark.parametrize("case", REPEATED_NAMES)
@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_cell_names_that_occur_twice_are_noted(tmp_path, case):
    names, expected = REPEATED_NAMES[case]
    found = [note for note in names_of(names, tmp_path) if "name" in note]
    assert len(found) == len(expected)
    assert all(note.startswith(start) for note, start in zip(found, expected, strict=True))


def test_files_with_the_same_name_get_different_dataset_names(tmp_path):
    (tmp_path / "x").mkdir()
    paths = [write(screen(10, seed=i, lean=True), tmp_path / d / "s.h5ad") for i, d in enumerate((".", "x"))]
    obs = read_store(lp.convert(paths, tmp_path / "s.zarr")).obs
    assert obs["dataset"].value_counts().to_dict() == {"s": 10, "s_2": 10}


def test_files_without_common_genes_are_refused(tmp_path):
    paths = [write(screen(9, seed=i, genes=[f"{i}g1", f"{i}g2"], lean=True), tmp_path / f"{i}.h5ad") for i in range(2)]
    with pytest.raises(SourceFormatError, match="share no gene names"):
        lp.convert(paths, tmp_path / "s.zarr")
    assert leftovers(tmp_path, "0.h5ad", "1.h5ad") == []
