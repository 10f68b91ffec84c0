"""The scale benchmark, run tiny: that every operation works and is measured, not how fast it is."""

import json
import sys

import numpy as np
import pytest

from benchmarks import scale
from benchmarks.atlas import atlas
from benchmarks.processes import run_worker
from benchmarks.scale_operations import OPERATIONS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks need /proc")

CELLS = 120_000


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a store in either order."""
    folder = tmp_path_factory.mktemp("scale")
    atlas(folder, cells=CELLS)
    for order in scale.ORDERS:
        scale._store(folder, CELLS, order, "256MiB")
    return folder


@pytest.mark.parametrize("order", ["grouped", pytest.param("source", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_runs(work, name, order):
    operation = OPERATIONS[name]
    operation.run(str(work / (f"atlas-{CELLS}.h5ad" if operation.reads_h5ad else f"atlas-{CELLS}-{order}.zarr")))


def test_lazy_anndata_gives_the_same_answers(work):
    h5ad, store = str(work / f"atlas-{CELLS}.h5ad"), str(work / f"atlas-{CELLS}-grouped.zarr")
    ours, theirs = OPERATIONS["table"].run(store), OPERATIONS["read-lazy-table"].run(h5ad)
    assert dict(zip(zip(ours.cell_type, ours.perturbation, strict=True), ours.n_cells, strict=True)) == theirs.to_dict()
    ours, theirs = OPERATIONS["mean-fast"].run(store)["mean"].to_numpy(), OPERATIONS["read-lazy-mean"].run(h5ad)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.slow
def test_the_report_has_a_row_for_each_operation(work, capsys):
    options = scale.Options(sizes=(CELLS,), operations=("convert", "open", "table"), work=work)
    report = scale.run(options)
    assert not report["failed"]
    assert [run["operation"] for run in report["runs"]] == ["convert", "open", "table"]
    assert all(run["seconds"] > 0 and run["peak_over_imports_bytes"] > 0 for run in report["runs"])
    assert json.loads((work / "scale.json").read_text())["runs"] == report["runs"]
    printed = capsys.readouterr().out
    assert printed.strip() == (work / "scale.md").read_text().strip()
    assert "| ds.pert.table() |" in printed
    assert "| lp.convert " in printed
    assert report["runs"][0]["times_read"] > 1


@pytest.mark.slow
def test_a_worker_reports_the_size_of_the_answer(work):
    run = run_worker("benchmarks._scale_worker", "codes", str(work / f"atlas-{CELLS}-grouped.zarr"))
    assert run["answer_bytes"] == 8 * CELLS
