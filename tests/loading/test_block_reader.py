"""Blocks hold the cells of the epoch plan, with controls and labels, for any features."""

from dataclasses import replace

import numpy as np
import pytest

from lazypert.design.control_pools import control_pools
from lazypert.design.sampler_config import PerturbationSamplerConfig
from lazypert.design.sentence_plan import SentencePlan
from lazypert.loading.block_reader import BlockConfig, BlockReader
from lazypert.loading.cell_metadata import CellMetadata
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


def dense(rows, n_columns=200):
    if not isinstance(rows, RowPointers):
        return rows
    out = np.empty((len(rows), n_columns), np.float32)
    rows.to_dense(RowTransform(columns=None, n_columns=n_columns), np.zeros(len(rows), np.uint64), out)
    return out


def test_blocks_hold_the_cells_of_the_plan(source, plan, make_reader):
    reader, epoch = make_reader(), plan.epoch(3)
    for number in (0, 2, epoch.n_blocks - 1):
        block = reader.read(epoch, number)
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
    other.read(plan.epoch(0), 0)
    for epoch, number in ((0, 1), (1, 0)):
        blocks = [reader.read(plan.epoch(epoch), number) for reader in (one, other)]
        for name in ("row", "control_row", "is_padding"):
            np.testing.assert_array_equal(*(block.columns[name] for block in blocks))
        np.testing.assert_array_equal(*(block.cell_keys for block in blocks))
        np.testing.assert_array_equal(*(block.control_keys for block in blocks))


def test_random_numbers_differ_between_cells_controls_and_epochs(plan, make_reader):
    reader = make_reader()
    blocks = [reader.read(plan.epoch(epoch), 0) for epoch in range(2)]
    keys = [keys for block in blocks for keys in (block.cell_keys, block.control_keys)]
    assert [len(values) for values in keys] == [128, 256] * 2
    for values in keys[1:]:
        assert not set(keys[0].tolist()) & set(values.tolist())


def test_without_controls_none_are_read(plan, make_reader):
    block = make_reader(n_basal_samples=0).read(plan.epoch(0), 0)
    assert block.controls is None
    assert "control_row" not in block.columns


@pytest.mark.parametrize("reads_dense", [False, True])
def test_selected_columns_are_read(source, plan, make_reader, reads_dense):
    columns = ColumnSelection.from_indices(np.array([150, 3]), 200)
    block = make_reader(columns=columns, reads_dense=reads_dense).read(plan.epoch(0), 0)
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
                columns = reader.read(plan.epoch(epoch), number).columns
                for row, controls in zip(columns["row"].tolist(), columns["control_row"].tolist(), strict=True):
                    assert controls_of.setdefault(row, controls) == controls
        # Pages are cached only if all of them fit.
        assert bool(reader._control_cache._pages) == (control_cache_bytes > 0)


def test_row_numbers_have_the_requested_dtype(plan, make_reader):
    for dtype in (np.int32, np.int64):
        columns = make_reader(row_dtype=dtype).read(plan.epoch(0), 0).columns
        assert columns["row"].dtype == columns["control_row"].dtype == dtype
