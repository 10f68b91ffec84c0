"""What each operation reads of a store of many shards: bytes and requests, and that neighbouring reads share chunks."""

import numpy as np
import pytest

import lazypert as lp
from benchmarks.range_server import RangeServer
from lazypert.simulate import reference_screen
from lazypert.store import chunk_memory
from lazypert.store.chunk_memory import ChunkMemory
from lazypert.store.remote_reader import RemoteReader
from lazypert.store.store import Store
from tests.support.stores import ROLES, small_grids


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    with pytest.MonkeyPatch.context() as patch:
        small_grids(patch, 256, 16_384)
        return lp.convert(reference_screen(folder / "screen.h5ad"), folder / "screen.zarr", **ROLES)


@pytest.fixture
def server(store, monkeypatch):
    monkeypatch.setattr("lazypert.store.sharded_chunks._SMALL", 0)
    monkeypatch.setattr(RemoteReader, "coalescing_gap", 64)
    server = RangeServer(store)
    yield server
    server.stop()


def of_matrix(requests):
    return [one for one in requests if one.key.startswith("X/") and not one.key.endswith("zarr.json")]


def stored_bytes(store):
    return sum(path.stat().st_size for path in store.glob("X/*/c/*"))


def epoch(where):
    config = lp.PerturbationPipelineConfig(**ROLES, train_frac=1.0, valid_frac=0.0, sentence_size=4)
    loader = lp.PerturbationPipeline(config).setup(where).loader("train", n_basal_samples=0, layout="csr", to="numpy")
    return [np.asarray(array) for batch in loader for array in (batch.row, batch.counts.data, batch.counts.indices)]


def test_an_epoch_and_a_scan_read_hardly_more_than_is_stored(server, store):
    for read in (
        epoch,
        lambda where: [lp.open(where).X.mean("cell").compute()],
        lambda where: [lp.open(where).pert.aggregate(by=())["var"].compute()],
        lambda where: [lp.open(where).pert.aggregate()["mean"].compute()],
    ):
        with server.recording() as requests:
            found = read(server.url)
        n_bytes = sum(request.n_bytes for request in of_matrix(requests))
        assert 0.9 * stored_bytes(store) < n_bytes < 1.3 * stored_bytes(store)
        for one, other in zip(found, read(store), strict=True):
            np.testing.assert_array_equal(one, other)


def test_an_aggregate_reads_the_cells_of_what_is_computed(server, store, monkeypatch):
    monkeypatch.setattr("lazypert.analysis.moments._BLOCK_BYTES_OF_RUNS", 1)  # one group for each block
    with server.recording() as requests:
        means = lp.open(server.url).pert.aggregate(stats="mean")["mean"]
    assert of_matrix(requests) == []
    one = {"perturbation": "TP53", "cell_type": "Neuron"}
    with server.recording() as requests:
        found = means.sel(one).compute()
    n_bytes = sum(request.n_bytes for request in of_matrix(requests) if "indptr" not in request.key)
    assert 0 < n_bytes < 0.2 * stored_bytes(store)  # one of 18 groups, indexes of shards, and chunks at its ends
    np.testing.assert_array_equal(found, lp.open(store).pert.aggregate(stats="mean")["mean"].sel(one).compute())


def test_blocks_of_a_scan_are_read_ahead(server, store):
    matrix, local = Store(server.url).matrix(), Store(store).matrix()
    blocks = [(start, start + 20) for start in range(0, matrix.shape[0], 20)]
    with server.recording() as requests:
        for block in blocks:
            np.testing.assert_array_equal(matrix.read(*block).data, local.read(*block).data)
    chunks = [one for one in of_matrix(requests) if not one.range.startswith("bytes=-")]
    assert len(chunks) < len(blocks), "half of one for each block and array"
    assert sum(request.n_bytes for request in chunks) < 1.05 * stored_bytes(store)


def test_what_is_recorded_needs_no_matrix(server, store):
    config = lp.PerturbationPipelineConfig(**ROLES, valid_frac=0.2)
    for work in (
        lambda where: lp.open(where).pert.knockdown(var_gene_col="gene_name"),
        lambda where: lp.open(where).pert.table(),
        lambda where: lp.PerturbationPipeline(config).setup(where),
    ):
        with server.recording() as requests:
            work(server.url)
        assert of_matrix(requests) == []
        assert sum(request.n_bytes for request in requests) < 0.5 * stored_bytes(store)


def test_verifying_reads_each_file_once(server, store):
    with server.recording() as requests:
        assert lp.verify(server.url) == lp.verify(store)
    total = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    assert sum(request.n_bytes for request in requests) < 1.2 * total


def test_memory_of_chunks_is_bounded_and_given_back(server, store, monkeypatch):
    memory = ChunkMemory(30_000)
    monkeypatch.setattr("lazypert.store.sharded_chunks.CHUNKS", memory)
    rng = np.random.default_rng(0)
    matrix, local = Store(server.url).matrix(), Store(store).matrix()
    for _ in range(30):
        rows = rng.integers(0, matrix.shape[0], 20)
        np.testing.assert_array_equal(matrix.read_rows(rows).data, local.read_rows(rows).data)
    assert chunk_memory.MAX_CHUNKS > 1
    assert 0 < memory._n_bytes == sum(piece.size for piece in memory._pieces) < 60_000
    del matrix
    memory.find(0, np.arange(1))
    assert memory._n_bytes == len(memory._of_chunk) == 0
