"""Blocks hold the cells of the epoch plan, with controls and labels, for any features."""

from dataclasses import replace

import numpy as np
import pytest

from lazypert.design.control_pools import control_pools
from lazypert.design.sampler_config import PerturbationSamplerConfig
from lazypert.design.sentence_plan import SentencePlan
from lazypert.loading.block_reader import BlockConfig, BlockReader
from lazypert.loading.cell_metadata import CellMetadata
from lazypert.loading.control_arena import ControlArena, arena_bytes
from lazypert.loading.control_cache import ControlCache
from lazypert.loading.row_pointers import RowPointers, RowTransform
from lazypert.sparse.columns import ColumnSelection

CONFIG = BlockConfig(
    n_basal_samples=2,
    fixed_pairs=False,
    is_embedding=False,
    columns=None,
    target_sum=None,
    reads_dense=False,
    control_cache_bytes=10**6,
    control_bytes=500,
    n_cells=10**6,
    visits_all_controls=False,
)


@pytest.fixture
def plan(source):
    rows = source.groups.rows(source.groups.ids >= 0)
    config = PerturbationSamplerConfig(sentence_size=8, sentences_per_batch=4, shuffle_size=128)
    return SentencePlan.from_rows(config, source.groups, rows)


@pytest.fixture
def make_reader(source):
    rows = source.groups.rows(source.groups.ids >= 0)

    def make(**options):
        metadata = CellMetadata(source, ("barcode",), (), text_width=32)
        pools = control_pools(source.groups, by_batch=False)
        return BlockReader(source, rows, pools, replace(CONFIG, **options), metadata=metadata)

    return make


def steps_of(epoch, number):
    """The steps of one block of an epoch."""
    per_block = epoch.plan.batches_per_block
    return range(number * per_block, min((number + 1) * per_block, epoch.n_batches))


def dense(rows, n_columns=200):
    if not isinstance(rows, RowPointers):
        return rows
    out = np.empty((len(rows), n_columns), np.float32)
    rows.to_dense(RowTransform(columns=None, n_columns=n_columns), np.zeros(len(rows), np.uint64), out)
    return out


def test_blocks_hold_the_cells_of_the_plan(source, plan, make_reader):
    reader, epoch = make_reader(), plan.epoch(3)
    for number in (0, 2, epoch.n_blocks - 1):
        block = reader.read(epoch, steps_of(epoch, number))
        sentences = epoch.block(number)
        rows = reader._rows.to_rows(reader._rows.positions(sentences.cells.ravel()))
        np.testing.assert_array_equal(block.columns["row"], rows)
        np.testing.assert_array_equal(block.columns["is_padding"], sentences.is_padding.ravel())
        cells, controls = source.batch(rows), source.batch(block.columns["control_row"].ravel())
        for name in ("pert_code", "cell_type_code", "batch_code", "is_control"):
            np.testing.assert_array_equal(block.columns[name], cells[name])
        assert controls["is_control"].all()
        np.testing.assert_array_equal(dense(block.cells), cells["counts"])
        np.testing.assert_array_equal(dense(block.controls), controls["counts"])
        names = [bytes(name).rstrip(b"\0").decode() for name in block.metadata["barcode"]]
        assert names == list(source.obs_names(rows))


def test_blocks_depend_only_on_epoch_and_number(plan, make_reader):
    one, other = make_reader(), make_reader()
    other.read(plan.epoch(0), range(4))
    for epoch, steps in ((0, range(4, 8)), (1, range(4))):
        blocks = [reader.read(plan.epoch(epoch), steps) for reader in (one, other)]
        for name in ("row", "control_row", "is_padding"):
            np.testing.assert_array_equal(*(block.columns[name] for block in blocks))
        np.testing.assert_array_equal(*(block.cell_keys for block in blocks))
        np.testing.assert_array_equal(*(block.control_keys for block in blocks))


@pytest.mark.parametrize("reads_dense", [False, True])
def test_parts_of_a_block_are_slices_of_it(plan, make_reader, reads_dense):
    """Whatever the parts, a batch has the same cells, controls and random numbers."""
    columns = ColumnSelection.from_indices(np.array([150, 3]), 200) if reads_dense else None
    reader, epoch = make_reader(columns=columns, reads_dense=reads_dense), plan.epoch(2)
    width = 2 if reads_dense else 200
    for number in (1, epoch.n_blocks - 1):
        steps = steps_of(epoch, number)
        whole = reader.read(epoch, steps)
        for start, stop in ((0, 1), (1, 3), (1, len(steps)), (len(steps) - 1, len(steps))):
            part, cells, controls = reader.read(epoch, steps[start:stop]), slice(32 * start, 32 * stop), 2 * 32
            for name, values in whole.columns.items():
                np.testing.assert_array_equal(part.columns[name], values[cells])
            np.testing.assert_array_equal(part.metadata["barcode"], whole.metadata["barcode"][cells])
            np.testing.assert_array_equal(part.cell_keys, whole.cell_keys[cells])
            np.testing.assert_array_equal(part.control_keys, whole.control_keys[start * controls : stop * controls])
            np.testing.assert_array_equal(dense(part.cells, width), dense(whole.cells, width)[cells])
            np.testing.assert_array_equal(
                dense(part.controls, width), dense(whole.controls, width)[start * controls : stop * controls]
            )


@pytest.mark.parametrize("n_controls", ["all", "some", "none"])
def test_controls_go_to_an_arena_only_if_all_fit(source, plan, make_reader, n_controls):
    """The arena, pages and direct reads give the same controls."""
    pools = make_reader()._pools
    n_bytes = arena_bytes(source.matrix, pools.controls)
    budget = {"all": n_bytes, "some": n_bytes - 1, "none": 1}[n_controls]
    reader = make_reader(control_cache_bytes=budget, control_bytes=0 if n_controls != "none" else 10**6, n_cells=10**6)
    assert isinstance(reader._controls, ControlArena if n_controls == "all" else ControlCache)
    assert (reader.reach is None) == (n_controls != "none")
    expected = make_reader(control_cache_bytes=10**9)
    for steps in (range(4), range(4, 8)):
        blocks = [each.read(plan.epoch(0), steps) for each in (reader, expected)]
        controls = source.batch(blocks[0].columns["control_row"].ravel())["counts"]
        np.testing.assert_array_equal(dense(blocks[0].controls), controls)
        if n_controls != "none":
            np.testing.assert_array_equal(*(block.columns["control_row"] for block in blocks))


def test_memory_of_a_part_can_be_reused_for_a_block(source, plan, make_reader):
    sizes = []

    def allocate(size, dtype):
        sizes.append(size)
        return np.empty(size, dtype)

    reader = make_reader(n_basal_samples=0)
    reader._allocate = allocate
    whole = [int(reader.read(plan.epoch(0), range(4)).cells.length.sum())] * 2
    reader.read(plan.epoch(0), range(1, 2))
    assert sizes[:2] == whole
    assert all(0.8 * size < part < 1.2 * size for part, size in zip(sizes[2:], whole, strict=True))


def test_random_numbers_differ_between_cells_controls_and_epochs(plan, make_reader):
    reader = make_reader()
    blocks = [reader.read(plan.epoch(epoch), range(4)) for epoch in range(2)]
    keys = [keys for block in blocks for keys in (block.cell_keys, block.control_keys)]
    assert [len(values) for values in keys] == [128, 256] * 2
    for values in keys[1:]:
        assert not set(keys[0].tolist()) & set(values.tolist())


def test_without_controls_none_are_read(plan, make_reader):
    block = make_reader(n_basal_samples=0).read(plan.epoch(0), range(4))
    assert block.controls is None
    assert "control_row" not in block.columns


@pytest.mark.parametrize("reads_dense", [False, True])
def test_selected_columns_are_read(source, plan, make_reader, reads_dense):
    columns = ColumnSelection.from_indices(np.array([150, 3]), 200)
    block = make_reader(columns=columns, reads_dense=reads_dense).read(plan.epoch(0), range(4))
    assert isinstance(block.cells, RowPointers) != reads_dense
    expected = source.batch(block.columns["row"])["counts"][:, [150, 3]]
    np.testing.assert_array_equal(dense(block.cells, 2), expected)
    expected = source.batch(block.columns["control_row"].ravel())["counts"][:, [150, 3]]
    np.testing.assert_array_equal(dense(block.controls, 2), expected)


def test_fixed_pairs_are_the_same_in_every_epoch(plan, make_reader):
    for control_cache_bytes in (0, 10**6):
        reader, controls_of = make_reader(fixed_pairs=True, control_cache_bytes=control_cache_bytes), {}
        for epoch in range(2):
            for number in range(plan.epoch(epoch).n_blocks):
                columns = reader.read(plan.epoch(epoch), steps_of(plan.epoch(epoch), number)).columns
                for row, controls in zip(columns["row"].tolist(), columns["control_row"].tolist(), strict=True):
                    assert controls_of.setdefault(row, controls) == controls
        # Controls are kept only if all of them fit.
        assert isinstance(reader._controls, ControlArena) == (control_cache_bytes > 0)
        assert control_cache_bytes or not reader._controls._pages


def test_row_numbers_have_the_requested_dtype(plan, make_reader):
    for dtype in (np.int32, np.int64):
        columns = make_reader(row_dtype=dtype).read(plan.epoch(0), range(4)).columns
        assert columns["row"].dtype == columns["control_row"].dtype == dtype
