"""Cells are sorted outside of memory: pieces and buckets of any size give the same store, byte by byte."""

import shutil

import anndata
import numpy as np
import pandas as pd
import pytest

import lazypert as lp
from lazypert.conversion import cell_groups, cell_pieces, plan
from lazypert.conversion.cell_buckets import Buckets
from lazypert.errors import DiskFullError
from lazypert.screen import run_keys
from lazypert.store.store import Store
from tests.support.odd_screens import CASES, odd_screen, sources
from tests.support.sampling import sampled
from tests.support.stores import files, leftovers, small_blocks, small_grids, write

pytestmark = pytest.mark.filterwarnings("ignore:Observation names are not unique", "ignore::UserWarning")


def small_pieces(monkeypatch, piece, bucket):
    """Make conversion read and sort few cells at once."""
    monkeypatch.setattr(plan, "MAX_PIECE_CELLS", piece)
    monkeypatch.setattr(plan, "MAX_BUCKET_CELLS", bucket)
    monkeypatch.setattr(cell_pieces, "READ_STEP", max(1, piece // 2))
    monkeypatch.setattr(cell_groups, "MAX_TABLE", 16)
    monkeypatch.setattr(run_keys, "MAX_TABLE", 16)


def metadata(store):
    """Every metadata file of a store except the root, which has digests of paths and times of the sources."""
    return {path.relative_to(store): path.read_bytes() for path in store.rglob("*/zarr.json")}


@pytest.mark.parametrize("case", sampled(CASES, 6))
def test_pieces_and_buckets_of_any_size_give_the_same_bytes(tmp_path, monkeypatch, case):
    small_grids(monkeypatch, 8, 16)
    screens, options = sources(case)
    paths = [write(screen, tmp_path / f"{k}.h5ad") for k, screen in enumerate(screens)]
    expected = lp.convert(paths, tmp_path / "expected.zarr", **options)
    for piece, bucket in ((7, 5), (100, 3)):
        with monkeypatch.context() as patch:
            small_pieces(patch, piece, bucket)
            small_blocks(patch, 300)
            store = lp.convert(paths, tmp_path / "s.zarr", overwrite=True, **options)
        assert files(store) == files(expected)
        assert metadata(store) == metadata(expected)
        assert Store(store).attrs == Store(expected).attrs
    assert leftovers(tmp_path, "s.zarr", "expected.zarr", *(path.name for path in paths)) == []


def test_a_joined_table_and_objects_in_memory_give_the_same_bytes(tmp_path, monkeypatch):
    adata = odd_screen(40, 3)
    table = pd.DataFrame({"guide": ["g1", "g2"] * 15, "umis": np.arange(30)}, index=adata.obs_names[:30])
    options = {"pert_col": "guide", "control_pert": "g1", "obs": table}
    path = write(adata, tmp_path / "a.h5ad")
    for source in (path, anndata.read_h5ad(path)):
        expected = lp.convert(source, tmp_path / "expected.zarr", overwrite=True, **options)
        with monkeypatch.context() as patch:
            small_pieces(patch, 6, 4)
            store = lp.convert(source, tmp_path / "s.zarr", overwrite=True, **options)
        assert files(store) == files(expected)


@pytest.mark.parametrize("capacity", [1, 3, 10, 100])
def test_every_cell_is_in_one_bucket_in_the_order_of_runs_and_hashes(capacity):
    rng = np.random.default_rng(capacity)
    sizes = rng.integers(1, 25, 12)
    buckets = Buckets.of(sizes, capacity)
    run = np.repeat(np.arange(12), sizes)
    hashes = rng.integers(0, 2**64, len(run), dtype=np.uint64)
    hashes[:2] = 0, 2**64 - 1
    order = np.lexsort((hashes, run))
    found = buckets.bucket_of(run, hashes)[order]
    assert (np.diff(found) >= 0).all()
    assert found[0] >= 0
    assert found[-1] < buckets.n_buckets
    for bucket in range(buckets.n_buckets):
        runs = np.unique(run[order][found == bucket])
        if (parts := buckets.part_of_run(bucket)) is not None:
            assert parts[0] <= bucket < parts[1]
            assert len(runs) <= 1
        else:
            assert sizes[runs].sum() == (found == bucket).sum() <= capacity


@pytest.mark.slow
def test_an_interruption_at_any_step_resumes_with_the_same_bytes(tmp_path, monkeypatch):
    small_grids(monkeypatch, 8, 16)
    small_pieces(monkeypatch, 9, 6)
    screens, options = sources("several_files")
    paths = [write(screen, tmp_path / f"{k}.h5ad") for k, screen in enumerate(screens)]
    events = []
    expected = lp.convert(paths, tmp_path / "expected.zarr", progress=events.append, **options)
    steps = [k for k, event in enumerate(events) if event.done == 1]
    seen = set()
    for step in steps[:: max(1, len(steps) // 12)]:
        counted = iter(range(step))

        def stop(_, counted=counted):
            if next(counted, None) is None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            lp.convert(paths, tmp_path / "s.zarr", overwrite=True, progress=stop, **options)
        seen.add(events[step].phase)
        store = lp.convert(paths, tmp_path / "s.zarr", overwrite=True, **options)
        assert files(store) == files(expected)
    assert len(seen) > 5
    assert leftovers(tmp_path, "s.zarr", "expected.zarr", *(path.name for path in paths)) == []


def test_finished_names_and_columns_are_not_read_again(tmp_path, monkeypatch):
    from lazypert_converters._anndata import AnnDataReader

    path = write(odd_screen(50, 0), tmp_path / "a.h5ad")
    expected = lp.convert(path, tmp_path / "expected.zarr", **sources("grouped")[1])

    def stop(event):
        if event.phase == "X: writing shards":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lp.convert(path, tmp_path / "s.zarr", progress=stop, **sources("grouped")[1])
    read, original = [], AnnDataReader.obs_column

    def obs_column(self, name, start=0, stop=None):
        read.append(stop - start)
        return original(self, name, start, stop)

    monkeypatch.setattr(AnnDataReader, "obs_names", lambda *_: pytest.fail("the names are in the store"))
    monkeypatch.setattr(AnnDataReader, "obs_column", obs_column)
    store = lp.convert(path, tmp_path / "s.zarr", **sources("grouped")[1])
    assert max(read) <= 1, "only the dtype of each column is looked up again"
    assert files(store) == files(expected)


def test_what_an_unfinished_conversion_holds_counts_as_free(tmp_path, monkeypatch):
    path = write(odd_screen(50, 0), tmp_path / "a.h5ad")
    options = sources("grouped")[1]

    def stop(event):
        if event.phase == "X: writing shards":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lp.convert(path, tmp_path / "s.zarr", progress=stop, **options)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1))
    with pytest.raises(DiskFullError):
        lp.convert(path, tmp_path / "other.zarr", **options)
    lp.verify(lp.convert(path, tmp_path / "s.zarr", **options))
