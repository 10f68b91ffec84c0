"""Threads do not change batches, and always end: no deadlock, and no thread or open file is left."""

import gc
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lazypert import PerturbationAnnDataSource, PerturbationSourceConfig
from lazypert.errors import StoreDamagedError, StoreNotFoundError
from tests.support.loaders import FIELDS, loader_of, loader_threads, same_batch
from tests.support.stores import flip


class TestThreads:
    def test_do_not_change_the_batches(self, source):
        expected = None
        for threads, prefetch in ((1, 1), (2, 2), (8, 3), (2, 50)):
            found = [
                [np.asarray(getattr(b, name)) for name in FIELDS]
                for b in loader_of(source, threads=threads, prefetch=prefetch)
            ]
            expected = expected or found
            assert len(found) == len(expected)
            for one, other in zip(found, expected, strict=True):
                assert all((a == b).all() for a, b in zip(one, other, strict=True))

    def test_end_with_the_epoch(self, source):
        list(loader_of(source, threads=4))
        assert loader_threads() == []

    @pytest.mark.parametrize("threads", [1, 2, 8])
    @pytest.mark.parametrize("after", [1, 3])
    def test_end_when_the_iterator_is_deleted(self, source, threads, after):
        iterator = iter(loader_of(source, threads=threads, prefetch=2))
        for _ in range(after):
            next(iterator)
        assert loader_threads() != []
        del iterator
        gc.collect()
        assert loader_threads() == []

    def test_start_with_the_first_batch(self, source):
        iterator = iter(loader_of(source))
        assert loader_threads() == []
        del iterator

    def test_two_iterators_run_at_once(self, source):
        loader = loader_of(source)
        loader.set_epoch(1)
        second = [np.asarray(batch.row).tolist() for batch in loader]
        loader.set_epoch(0)
        pairs = [(one.row.tolist(), other.row.tolist()) for one, other in zip(loader, loader, strict=True)]
        assert [other for _, other in pairs] == second
        assert [one for one, _ in pairs] != second
        assert loader_threads() == []


@pytest.mark.parametrize("options", [{}, {"layout": "csr"}, "all"], ids=["dense", "csr", "all"])
def test_batches_are_the_same_for_any_threads_prefetch_and_memory(source, options, request):
    options = request.getfixturevalue("all_options") if options == "all" else options
    expected = list(loader_of(source, threads=1, prefetch=1, **options))
    for threads, prefetch, memory in ((1, 4, "1MiB"), (2, 2, "512MiB"), (8, 3, "2MiB"), (2, 50, "1GiB")):
        found = list(loader_of(source, threads=threads, prefetch=prefetch, memory_limit=memory, **options))
        assert len(found) == len(expected)
        if memory in ("512MiB", "1GiB"):  # the cache decides which controls can be drawn
            assert all(same_batch(a, b) for a, b in zip(found, expected, strict=True))
        else:
            assert all((a.row == b.row).all() for a, b in zip(found, expected, strict=True))


def open_files():
    """Number of files that this process has open; 0 on systems without /proc."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


@pytest.fixture
def copied_store(reference, tmp_path):
    """A copy of the reference store that the test may damage."""
    return shutil.copytree(reference.store, tmp_path / "copy.zarr")


class TestFaults:
    """No deadlock, no thread or open file left, and an error that says what happened."""

    @pytest.fixture(autouse=True)
    def nothing_is_left_open(self):
        gc.collect()
        before = open_files()
        yield
        gc.collect()
        assert loader_threads() == []
        assert open_files() == before

    def test_eight_threads_share_one_iterator(self, source):
        loader = loader_of(source, sentence_size=4, sentences_per_batch=2)
        expected = {tuple(np.asarray(batch.row).tolist()) for batch in loader}
        loader.set_epoch(0)
        shared = iter(loader)

        def work(_):
            return [tuple(np.asarray(batch.row).tolist()) for batch in shared]

        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(work, range(8)))
        found = [rows for result in results for rows in result]
        assert len(found) == len(loader)
        assert set(found) == expected

    def test_eight_threads_each_have_an_iterator(self, source):
        loader = loader_of(source)
        expected = [[np.asarray(batch.row).tolist() for batch in loader] for _ in range(8)]
        loader.set_epoch(0)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: [np.asarray(batch.row).tolist() for batch in loader], range(8)))
        assert sorted(found) == sorted(expected)

    @pytest.mark.parametrize("layout", ["dense", "csr"])
    def test_an_exception_in_the_training_loop_ends_the_threads(self, source, layout):
        def train():
            for step, _ in enumerate(loader_of(source, layout=layout)):
                if step == 2:
                    raise FloatingPointError("the loss is nan")

        with pytest.raises(FloatingPointError, match="the loss is nan"):
            train()

    @pytest.mark.parametrize("threads", [1, 8])
    def test_a_store_deleted_during_an_epoch_raises(self, copied_store, threads):
        source = PerturbationAnnDataSource(PerturbationSourceConfig(file_path=copied_store))
        loader = loader_of(source, sentence_size=8, sentences_per_batch=2, shuffle_size=16, threads=threads)
        batches = iter(loader)
        next(batches)
        shutil.rmtree(copied_store)
        with pytest.raises(StoreNotFoundError, match=r"There is no store at .* any more"):
            list(batches)
        with pytest.raises(StoreNotFoundError):  # and not the end of the epoch
            next(batches)
        with pytest.raises(StoreNotFoundError):
            loader.batch(0, 0)
        batches.close()

    def test_a_store_that_is_being_deleted_is_not_called_damaged(self, copied_store):
        """Threads meet the missing matrix first, and the root is gone when the error is raised."""
        loader = loader_of(PerturbationAnnDataSource(PerturbationSourceConfig(file_path=copied_store)), shuffle_size=16)
        batches = iter(loader)
        next(batches)
        shutil.rmtree(copied_store / "X")
        time.sleep(0.3)
        shutil.rmtree(copied_store)
        with pytest.raises(StoreNotFoundError, match="any more"):
            list(batches)

    def test_a_damaged_chunk_raises(self, copied_store):
        flip(copied_store / "X/data/c/0", 8 * 200)
        loader = loader_of(PerturbationAnnDataSource(PerturbationSourceConfig(file_path=copied_store)))
        with pytest.raises(StoreDamagedError, match="X/data/c/0: the checksum of chunk 0 does not match"):
            list(loader)

    def test_iterators_can_be_deleted_after_any_batch(self, source):
        loader = loader_of(source, sentence_size=8, sentences_per_batch=2, threads=4)
        for taken in range(0, 20, 3):
            batches = iter(loader)
            for _ in range(taken):
                next(batches)
            del batches
        gc.collect()
        assert loader_threads() == []

    def test_closed_iterators_are_exhausted(self, source):
        batches = iter(loader_of(source))
        next(batches)
        batches.close()
        assert loader_threads() == []
        with pytest.raises(StopIteration):
            next(batches)
        unused = iter(loader_of(source))
        unused.close()
        with pytest.raises(StopIteration):
            next(unused)

    def test_batches_stay_valid_after_the_loader_is_deleted(self, source):
        batches = list(loader_of(source, sentence_size=8, sentences_per_batch=2, memory_limit="1MiB"))
        gc.collect()
        for batch in batches:
            np.testing.assert_array_equal(batch.counts, source.batch(np.asarray(batch.row))["counts"])


EXITS_EARLY = """
import sys
import lazypert as lp

config = lp.PerturbationPipelineConfig(train_frac=1.0, valid_frac=0.0, sentence_size=4, sentences_per_batch=2)
batches = iter(lp.PerturbationPipeline(config).setup(sys.argv[1]).loader("train"))
next(batches)
print("one")
"""


@pytest.mark.slow
def test_a_program_can_exit_in_the_middle_of_an_epoch(reference):
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", EXITS_EARLY, str(reference.store)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stdout.strip()) == (0, "one"), done.stderr[-3000:]
