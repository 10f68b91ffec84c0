from __future__ import annotations

import functools
import gc
import importlib.metadata
import sys
from types import SimpleNamespace

import anndata
import pytest

import lazypert as lp
from lazypert.simulate import reference_screen
from tests.support.stores import ROLES


def pytest_collection_finish():
    """Leave imported modules and collected tests out of garbage collection, which takes half a second with them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _no_sync():
    """Skip fsync, a quarter of the time of a small conversion. Only a power failure could tell the difference."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("conversion.staging", "dataset.anndata_files", "updates.store_folder"):
            patch.setattr(f"lazypert.{module}.sync", lambda _: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _entry_points_once():
    """Search for converters only once per search path: to open a small file takes half the time."""
    find = functools.cache(lambda group, _: importlib.metadata.entry_points(group=group))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lazypert.converter.entry_points", lambda *, group: find(group, tuple(sys.path)))
        yield


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """The reference screen: the file, what AnnData reads in it, its store, and a source. Don't write to them."""
    folder = tmp_path_factory.mktemp("reference")
    path = reference_screen(folder / "screen.h5ad", seed=1)
    store = lp.convert(path, folder / "screen.zarr", **ROLES)
    source = lp.PerturbationAnnDataSource(lp.PerturbationSourceConfig(file_path=store, hvg_col="highly_variable"))
    return SimpleNamespace(path=path, adata=anndata.read_h5ad(path), store=store, source=source)


def pytest_terminal_summary(terminalreporter):
    """Print the lines that tests have recorded as ``table``, also when other processes ran them."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    lines = {value for r in reports for name, value in getattr(r, "user_properties", ()) if name == "table"}
    if lines:
        terminalreporter.section("published files")
        for line in sorted(lines):
            terminalreporter.write_line(line)
