"""Peak memory of queries grows by a few bytes per cell, or by their answer."""

import pytest

from benchmarks import scale
from benchmarks.processes import run_worker

SMALL, LARGE = 1_500_000, 4_500_000

# Bytes per cell, answer included. One byte is the code of a cell's batch.
LIMITS = {
    "table": 1,
    "select": 1,
    "select-perturbation": 1,
    "find-cells": 1,
    "select-mask": 12,
    "sum": 12,
    "mean": 1,
    "knockdown": 8,
    "source-batch": 2,
    "mapping-random": 12,
    "mapping-batch": 14,
    "mapping-batch-blocks": 4,
    "split-report": 8,
    "first-batch": 10,
}
MARGIN = 48 * 2**20


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("atlas")
    return {cells: scale._store(folder, cells, "grouped", "1GiB") for cells in (SMALL, LARGE)}


@pytest.mark.slow
@pytest.mark.parametrize("name", LIMITS)
def test_memory_per_cell(stores, name):
    peak = {
        cells: run_worker("benchmarks._scale_worker", name, str(store))["peak_over_imports_bytes"]
        for cells, store in stores.items()
    }
    assert peak[LARGE] - peak[SMALL] < LIMITS[name] * (LARGE - SMALL) + MARGIN, peak
    assert peak[LARGE] < 2**30
