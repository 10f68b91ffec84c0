"""A file is converted on first use, and again when it changes; a store is opened as it is."""

import os

import numpy as np
import pytest

import lazypert as lp
from lazypert import PerturbationAnnDataSource, PerturbationSourceConfig
from lazypert.errors import StoreNotFoundError
from tests.support.screens import holey_screen, in_store_order, write_screen


def config_of(path, **options):
    return PerturbationSourceConfig(file_path=path, **options)


def test_the_store_lies_beside_the_file_and_is_reused(tmp_path):
    path = write_screen(holey_screen(), tmp_path / "s.h5ad")
    PerturbationAnnDataSource(config_of(path))
    cache = tmp_path / "s.lazypert.zarr"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.h5ad", "s.lazypert.zarr"]
    made = (cache / "zarr.json").stat().st_mtime_ns, (cache / "zarr.json").stat().st_ino
    PerturbationAnnDataSource(config_of(path))
    assert made == ((cache / "zarr.json").stat().st_mtime_ns, (cache / "zarr.json").stat().st_ino)


def test_the_store_is_replaced_when_the_file_changes(tmp_path):
    path = write_screen(holey_screen(seed=0), tmp_path / "s.h5ad")
    PerturbationAnnDataSource(config_of(path))
    write_screen(holey_screen(seed=1), path)
    source = PerturbationAnnDataSource(config_of(path))
    assert (
        source.matrix.read_rows(np.arange(40)).to_dense() == in_store_order(source, holey_screen(seed=1)).X.toarray()
    ).all()


def test_the_store_is_replaced_when_only_the_modification_time_changes(tmp_path):
    path = write_screen(holey_screen(), tmp_path / "s.h5ad")
    PerturbationAnnDataSource(config_of(path))
    inode = (tmp_path / "s.lazypert.zarr").stat().st_ino
    os.utime(path, ns=(1, 1))
    PerturbationAnnDataSource(config_of(path))
    assert (tmp_path / "s.lazypert.zarr").stat().st_ino != inode


def test_the_store_can_lie_in_another_folder(tmp_path):
    path = write_screen(holey_screen(), tmp_path / "data" / "s.h5ad")
    cache = tmp_path / "new" / "cache"
    PerturbationAnnDataSource(config_of(path, cache_dir=cache))
    assert [p.name for p in path.parent.iterdir()] == ["s.h5ad"]
    assert len(list(cache.glob("s*.lazypert.zarr"))) == 1
    inode = next(cache.iterdir()).stat().st_ino
    PerturbationAnnDataSource(config_of(path, cache_dir=cache))
    assert [p.stat().st_ino for p in cache.iterdir()] == [inode]


def test_files_with_the_same_name_get_different_stores(tmp_path):
    sources = []
    for seed, folder in enumerate(("a", "b")):
        path = write_screen(holey_screen(seed=seed), tmp_path / folder / "s.h5ad")
        sources.append(PerturbationAnnDataSource(config_of(path, cache_dir=tmp_path / "cache")))
    for seed, source in enumerate(sources):
        adata = in_store_order(source, holey_screen(seed=seed))
        assert (source.matrix.read_rows(np.arange(40)).to_dense() == adata.X.toarray()).all()


def test_a_store_is_opened_without_conversion(tmp_path):
    path = write_screen(holey_screen(), tmp_path / "s.h5ad")
    store = lp.convert(path, tmp_path / "s.zarr", pert_col="perturbation", cell_type_col="cell_type", batch_col="batch")
    path.unlink()
    assert PerturbationAnnDataSource(config_of(store)).n_rows == 40
    assert [p.name for p in tmp_path.iterdir()] == ["s.zarr"]


def test_a_missing_file_raises(tmp_path):
    with pytest.raises(lp.LazypertError, match=r"none\.h5ad"):
        PerturbationAnnDataSource(PerturbationSourceConfig(file_path=tmp_path / "none.h5ad"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_a_store_raises(tmp_path):
    with pytest.raises(StoreNotFoundError):
        PerturbationAnnDataSource(PerturbationSourceConfig(file_path=tmp_path))
