"""The memory limit is divided among cached controls, blocks and batches, and respected unless it is tiny."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazypert.loading.config import LoaderConfig
from lazypert.loading.memory_plan import CellSize, EpochSize, plan_memory
from tests.support.loaders import loader_of

MIB = 2**20
SPARSE = CellSize(
    n_features=18_000, n_genes=18_000, nnz_per_cell=3_500.0, value_bytes=2, is_embedding=False, selects_genes=False
)
HVG = replace(SPARSE, n_features=2_000, selects_genes=True)
EMBEDDING = replace(SPARSE, n_features=50, nnz_per_cell=0.0, value_bytes=4, is_embedding=True)
EPOCH = EpochSize(batch_size=512, batches_per_block=8, n_controls=10_000)


def plan(limit=512 * MIB, cell=SPARSE, epoch=EPOCH, **options):
    return plan_memory(limit, LoaderConfig(threads=4, **options), cell, epoch)


def test_controls_get_35_percent_and_blocks_and_batches_share_the_rest():
    made = plan()
    assert made.control_cache_bytes == int(512 * MIB * 0.35)
    assert made.buffer_bytes == 512 * MIB - made.control_cache_bytes
    # uint16 values and column numbers: 4 bytes per value.
    assert made.control_bytes == 3_500 * 4 + 1
    assert made.nnz_per_cell == 3_500
    assert not made.reads_dense
    block_bytes = 3_500 * 4 * 4_096
    assert made.n_blocks == min(3, int(made.buffer_bytes * 0.6 / block_bytes)) == 3
    assert plan(limit=1024 * MIB).n_blocks == 5  # one for each thread, and one more
    batch_bytes = 2 * 512 * 18_000 * 4
    assert made.batches_ahead == min(2, int(made.buffer_bytes * 0.4 / batch_bytes)) == 1


def test_without_controls_nothing_is_cached():
    made = plan(n_basal_samples=0)
    assert (made.control_cache_bytes, made.buffer_bytes) == (0, 512 * MIB)


@pytest.mark.parametrize(
    ("options", "cell", "is_dense"),
    [
        ({}, HVG, True),
        ({"layout": "csr"}, HVG, False),
        ({}, replace(HVG, n_features=4_000), False),
        ({}, SPARSE, False),
        ({}, EMBEDDING, False),
    ],
    ids=["few genes", "csr", "more genes than values", "all genes", "embedding"],
)
def test_cells_are_read_dense_if_that_takes_no_more_memory(options, cell, is_dense):
    made = plan(cell=cell, **options)
    assert made.reads_dense == is_dense
    if is_dense:
        assert made.control_bytes == 4 * cell.n_features + 1


def test_selected_genes_are_expected_in_more_cells_than_others():
    made = plan(cell=HVG, layout="csr")
    assert made.nnz_per_cell == pytest.approx(3_500 * 3 * 2_000 / 18_000)
    few = plan(cell=replace(HVG, n_features=3, nnz_per_cell=18_000.0), layout="csr")
    assert few.nnz_per_cell == pytest.approx(3)


def test_wide_values_and_many_genes_take_more_bytes():
    assert plan(cell=replace(SPARSE, value_bytes=8)).control_bytes == 3_500 * 10 + 1
    assert plan(cell=replace(SPARSE, value_bytes=1)).control_bytes == 3_500 * 4 + 1
    assert plan(cell=replace(SPARSE, n_genes=70_000)).control_bytes == 3_500 * 6 + 1


def test_blocks_hold_controls_that_the_cache_does_not():
    """So the whole limit goes to blocks and batches."""
    assert plan(cell=EMBEDDING).buffer_bytes == 512 * MIB
    assert plan(fixed_pairs=True, epoch=replace(EPOCH, n_controls=10**6)).buffer_bytes == 512 * MIB
    assert plan(fixed_pairs=True).buffer_bytes < 512 * MIB
    assert plan(epoch=replace(EPOCH, n_controls=10**6)).buffer_bytes < 512 * MIB


cells = st.builds(
    CellSize,
    n_features=st.integers(1, 40_000),
    n_genes=st.integers(1, 80_000),
    nnz_per_cell=st.floats(0, 20_000),
    value_bytes=st.sampled_from([1, 2, 4, 8]),
    is_embedding=st.booleans(),
    selects_genes=st.booleans(),
)
epochs = st.builds(
    EpochSize,
    batch_size=st.integers(1, 8_192),
    batches_per_block=st.integers(1, 64),
    n_controls=st.integers(0, 10**7),
)


@given(
    limit=st.integers(0, 2**40), cell=cells, epoch=epochs, n_basal_samples=st.integers(0, 8),
    threads=st.integers(1, 16), prefetch=st.integers(1, 50), layout=st.sampled_from(["dense", "csr"]),
    fixed_pairs=st.booleans(),
)  # fmt: skip
def test_shares_fit_the_limit_beyond_the_minimum(
    limit, cell, epoch, n_basal_samples, threads, prefetch, layout, fixed_pairs
):
    config = LoaderConfig(
        n_basal_samples=n_basal_samples,
        threads=threads,
        prefetch=prefetch,
        layout=layout,
        fixed_pairs=fixed_pairs and n_basal_samples > 0,
    )
    made = plan_memory(limit, config, cell, epoch)
    assert 2 <= made.n_blocks <= threads + 1
    assert 1 <= made.batches_ahead <= prefetch
    assert 0 <= made.control_cache_bytes <= limit
    assert made.control_cache_bytes + made.buffer_bytes <= limit + made.control_cache_bytes
    assert made.control_bytes >= 1
    if made.batches_ahead > 1 and layout == "dense":
        batch_bytes = epoch.batch_size * (1 + n_basal_samples) * 4 * cell.n_features
        assert made.batches_ahead * batch_bytes <= 0.4 * limit
    if made.n_blocks > 2 and not cell.is_embedding:
        assert made.n_blocks * epoch.batch_size * epoch.batches_per_block * (made.control_bytes - 1) <= 0.6 * limit


def test_more_memory_never_gives_less():
    plans = [plan(limit=limit * MIB, prefetch=50) for limit in (0, 1, 64, 512, 4_096, 2**20)]
    for name in ("control_cache_bytes", "buffer_bytes", "n_blocks", "batches_ahead"):
        values = [getattr(made, name) for made in plans]
        assert values == sorted(values)
    assert (plans[0].n_blocks, plans[0].batches_ahead) == (2, 1)


def test_the_loader_follows_the_plan(source):
    loader = loader_of(source, memory_limit="1MiB", threads=2)
    expected = plan_memory(MIB, loader.config, loader._cell_size(), loader._epoch_size())
    assert loader._memory == expected
    n_cached = expected.control_cache_bytes // expected.control_bytes
    reach = loader.pools.reach(n_cached * 3 // 4, 10**6)
    assert loader.state_dict()["plan"]["controls_in_reach"] == (None if reach is None else reach.n_controls)
