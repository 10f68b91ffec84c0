"""Remote stores give the same batches, in few requests."""

import pytest

from lazypert import PerturbationAnnDataSource, PerturbationSourceConfig
from lazypert.loading.prefetch import divide_steps
from lazypert.store.remote_reader import RemoteReader
from tests.support.loaders import loader_of, loader_threads, same_batch


@pytest.fixture
def remote(reference):
    """The reference store in fsspec's memory file system, read as from object storage."""
    import fsspec

    files = fsspec.filesystem("memory")
    for path in reference.store.rglob("*"):
        if path.is_file():
            files.pipe(f"/loader.zarr/{path.relative_to(reference.store)}", path.read_bytes())
    yield "memory://loader.zarr"
    files.rm("/loader.zarr", recursive=True)


@pytest.mark.parametrize("options", [{}, {"layout": "csr", "target_sum": 1e4}], ids=["dense", "csr"])
def test_batches_equal_those_of_a_local_store(source, remote, options):
    other = PerturbationAnnDataSource(PerturbationSourceConfig(file_path=remote, hvg_col="highly_variable"))
    for epoch in range(2):
        loaders = loader_of(source, **options), loader_of(other, **options)
        for loader in loaders:
            loader.set_epoch(epoch)
        assert all(same_batch(a, b) for a, b in zip(*loaders, strict=True))
    assert loader_threads() == []


def test_indexes_are_requested_once_and_nearby_chunks_together(remote):
    from zarr.storage import FsspecStore

    requests = []

    class Counting(FsspecStore):
        async def get(self, key, prototype, byte_range=None):
            requests.append((key, byte_range))
            return await super().get(key, prototype, byte_range)

    source = PerturbationAnnDataSource(PerturbationSourceConfig(file_path=remote))
    counting = Counting.from_url(remote, read_only=True)
    for matrix in source.matrices:
        for array in (matrix.indptr, matrix.indices, matrix.data):
            array.reader = array.indexes.reader = RemoteReader(counting)
    loader = loader_of(source, n_basal_samples=0)
    list(loader)
    n_parts = len(divide_steps(range(len(loader)), loader.plan.batches_per_block))
    n_shards = sum(array.grid.n_shards for m in source.matrices for array in (m.indptr, m.indices, m.data))
    # One request per shard index, and one per part of a block and array for adjacent chunks.
    assert 0 < len(requests) <= n_shards + 3 * n_parts
