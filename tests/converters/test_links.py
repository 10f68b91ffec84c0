"""Sources refer to files in their own folder at most: links that lead elsewhere are refused, and nothing is read."""

import shutil
import zipfile

import fsspec
import h5py
import numpy as np
import pytest

import lazypert as lp
from lazypert.errors import SourceFormatError
from tests.support.h5files import PERTURBATION_ROLES, write_base
from tests.support.mtx import folder
from tests.support.stores import counts, leftovers, screen
from tests.support.zarr_stores import write_zarr


def external(file, far):
    far.copy(file["X"], "X")
    del file["X"]
    file["X"] = h5py.ExternalLink(far.filename, "/X")


def through_a_soft_link(file, far):
    external(file, far)
    file.move("X", "uns_far")
    file["X"] = h5py.SoftLink("/uns_far")


def view(file, far, name="X/data"):
    far[name] = file[name][:]
    layout = h5py.VirtualLayout(file[name].shape, file[name].dtype)
    layout[:] = h5py.VirtualSource(far.filename, name, file[name].shape, file[name].dtype)
    del file[name]
    file.create_virtual_dataset(name, layout)


def view_of_a_column(file, far):
    view(file, far, "obs/n")


HDF5 = {"external": external, "soft": through_a_soft_link, "view": view, "column": view_of_a_column}


def with_link(path, far, kind):
    with h5py.File(far, "w") as other:
        write_base(path, lambda file: HDF5[kind](file, other))
    return path


def assert_refused(source, target, says):
    with pytest.raises(SourceFormatError, match=says):
        lp.convert(source, target, **PERTURBATION_ROLES)
    assert not target.exists()


@pytest.mark.parametrize("kind", HDF5)
@pytest.mark.parametrize("place", ["above", "sibling", "working folder"])
def test_hdf5_links_to_other_folders_are_refused(tmp_path, monkeypatch, kind, place):
    (tmp_path / "own").mkdir()
    (tmp_path / "far").mkdir()
    far = {"above": "far.h5", "sibling": "far/far.h5", "working folder": "far/far.h5"}[place]
    path = with_link(tmp_path / "own" / "a.h5ad", tmp_path / far, kind)
    if place == "working folder":  # where HDF5 looks for relative paths
        monkeypatch.chdir(tmp_path / "far")
        monkeypatch.chdir("..")
        path.unlink()
        shutil.rmtree(tmp_path / "far")
        (tmp_path / "far").mkdir()
        path = with_link(path, far, kind)
    assert_refused(path, tmp_path / "a.zarr", "far.h5'.*(own folder|in its folder)")


@pytest.mark.parametrize("kind", HDF5)
def test_hdf5_links_are_followed_below_the_folder_and_from_a_link_to_the_file(tmp_path, kind):
    (tmp_path / "own" / "deep").mkdir(parents=True)
    path = with_link(tmp_path / "own" / "a.h5ad", tmp_path / "own" / "deep" / "far.h5", kind)
    (tmp_path / "link.h5ad").symlink_to(path)
    store = lp.convert(tmp_path / "link.h5ad", tmp_path / "a.zarr", **PERTURBATION_ROLES)
    assert lp.open(store).X.sum().compute() == counts(12, 7).sum()


def test_a_view_of_a_file_that_leads_further_is_refused(tmp_path):
    (tmp_path / "own").mkdir()
    path = with_link(tmp_path / "own" / "a.h5ad", tmp_path / "own" / "far.h5", "view")
    with h5py.File(tmp_path / "own" / "far.h5", "r+") as near, h5py.File(tmp_path / "far.h5", "w") as far:
        far["data"] = near["X/data"][:]
        del near["X/data"]
        near["X/data"] = h5py.ExternalLink(str(tmp_path / "far.h5"), "/data")
    assert_refused(path, tmp_path / "a.zarr", "'X/data'.*refers to a further file")
    with h5py.File(tmp_path / "own" / "far.h5", "r+") as near:
        del near["X/data"]
        n = counts(12, 7).nnz
        np.zeros(n, "f4").tofile(tmp_path / "raw")
        near.create_dataset("X/data", (n,), "f4", external=[(str(tmp_path / "raw"), 0, 4 * n)])
    assert_refused(path, tmp_path / "a.zarr", "'X/data'.*refers to a further file")


@pytest.mark.parametrize("kind", HDF5)
def test_hdf5_files_at_urls_refer_to_no_file_of_this_computer(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = with_link(tmp_path / "a.h5ad", str(tmp_path / "far.h5"), kind)
    fsspec.filesystem("memory").pipe(f"/links/{kind}.h5ad", path.read_bytes())
    assert_refused(f"memory://links/{kind}.h5ad", tmp_path / "a.zarr", "is a link|far.h5'.*in its folder")


@pytest.mark.parametrize("what", ["X", "X/data/c/0", "obs"])
def test_zarr_folders_with_links_out_of_them_are_refused(tmp_path, what):
    path = write_zarr(screen(20, 6), tmp_path / "a.zarr")
    shutil.move(path / what, tmp_path / "moved")
    (path / what).symlink_to(tmp_path / "moved")
    assert_refused(path, tmp_path / "b.zarr", f"the link '{what}'.*own folder")


def test_zarr_folders_with_links_inside_are_converted(tmp_path):
    path = write_zarr(screen(20, 6), tmp_path / "a.zarr")
    shutil.move(path / "X", path / "elsewhere")
    (path / "X").symlink_to("elsewhere")
    store = lp.convert(path, tmp_path / "b.zarr", **PERTURBATION_ROLES)
    assert lp.open(store).sizes["cell"] == 20


@pytest.mark.parametrize("name", ["../../evil", "/evil", "obs/../../evil", "..\\evil"])
def test_archives_whose_members_lead_out_are_refused(tmp_path, name):
    path = write_zarr(screen(20, 6), tmp_path / "a.zarr.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, "x")
    assert_refused(path, tmp_path / "b.zarr", "leads out of the archive")
    assert leftovers(tmp_path, path.name) == []


@pytest.mark.parametrize("name", ["matrix.mtx", "barcodes.tsv", "features.tsv"])
def test_folders_of_text_with_links_out_of_them_are_refused(tmp_path, name):
    path = tmp_path / "own"
    folder(path, counts(12, 7, dtype="i8"), gz=False)
    (path / name).rename(tmp_path / name)
    (path / name).symlink_to(tmp_path / name)
    with pytest.raises(SourceFormatError, match=f"the link '{name}'.*own folder"):
        lp.convert(path, tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()
