"""A plan checks memory and disk before anything is written, and has a fingerprint."""

import shutil
from dataclasses import replace

import pytest

import lazypert as lp
from lazypert._internal.memory import Budget
from lazypert.conversion.plan import ConversionOptions, source_stamp
from lazypert.conversion.planner import make_plan
from lazypert.converter import open_source
from lazypert.errors import ConfigError, DiskFullError
from lazypert.screen.roles import Roles
from tests.support.stores import ROLES, leftovers, screen, write

MIB = 1024**2


class Reader:
    """A reader with chunks of a given size."""

    def __init__(self, reader, scratch):
        self._reader, self._scratch = reader, scratch

    def __getattr__(self, name):
        return getattr(self._reader, name)

    def scratch_bytes(self, matrix):
        return self._scratch


@pytest.fixture
def path(tmp_path):
    return write(screen(lean=True), tmp_path / "a.h5ad")


def options(**changes):
    base = ConversionOptions(roles=Roles(**ROLES), layer=None, order="grouped", join="inner")
    return replace(base, **changes)


def planned(path, scratch=0, limit="256MiB", workers=4, **changes):
    return make_plan([Reader(open_source(path), scratch)], options(**changes), Budget.of(limit, workers))


@pytest.mark.parametrize(
    ("limit", "scratch", "workers", "block"),
    [
        pytest.param("1GiB", 0, 4, 64 * MIB, id="plenty"),
        pytest.param("256MiB", 0, 4, 16 * MIB, id="a quarter of each task's share"),
        pytest.param("256MiB", 50 * MIB, 4, (64 - 50) * MIB // 4, id="beside large chunks"),
        pytest.param("256MiB", 100 * MIB, 2, 7 * MIB, id="fewer tasks for larger chunks"),
        pytest.param("256MiB", 200 * MIB, 1, 14 * MIB, id="one task"),
    ],
)
def test_map_tasks_share_the_memory_limit(path, limit, scratch, workers, block):
    assert planned(path, scratch, limit).map_task_sizes("X")[:2] == (workers, block)


def test_chunks_that_never_fit_are_an_error_with_the_least_limit(path):
    with pytest.raises(ConfigError, match=r"memory_limit: got 256\.0 MiB, expected at least 304\.0 MiB"):
        planned(path, 300 * MIB).map_task_sizes("X")


def test_tasks_that_never_fit_are_an_error_before_anything_is_read(path, tmp_path, monkeypatch):
    monkeypatch.setattr("lazypert.conversion.plan._BYTES_PER_OBJECT", 20 * MIB)
    with pytest.raises(ConfigError, match=r"memory_limit: got 1\.0 GiB, expected at least .* to convert 90 cells"):
        lp.convert(path, tmp_path / "s.zarr", **ROLES)
    assert leftovers(tmp_path, "a.h5ad") == []


def test_groups_whose_table_does_not_fit_are_an_error(path, tmp_path, monkeypatch):
    monkeypatch.setattr("lazypert.conversion.cell_groups._BYTES_PER_SUBGROUP", 1024 * MIB)
    monkeypatch.setattr("lazypert.conversion.cell_groups.MAX_TABLE", 0)
    with pytest.raises(ConfigError, match=r"expected at least .* more than \d+ groups and batches"):
        lp.convert(path, tmp_path / "s.zarr", **ROLES)
    assert leftovers(tmp_path, "a.h5ad") == []


def test_a_disk_that_is_certainly_too_small_is_refused(path, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DiskFullError, match=r"has 1000 B free, and the conversion needs at least .* KiB"):
        lp.convert(path, tmp_path / "s.zarr", **ROLES)
    assert leftovers(tmp_path, "a.h5ad") == []


def test_different_plans_have_different_fingerprints(path):
    fingerprints = {planned(path).fingerprint()}
    assert fingerprints == {planned(path).fingerprint()}
    changes = [{"join": "outer"}, {"order": "source"}, {"roles": Roles(pert_col="perturbation")}]
    fingerprints |= {planned(path, **change).fingerprint() for change in changes}
    fingerprints.add(planned(path, limit="128MiB").fingerprint())
    write(screen(lean=True, seed=1), path)
    fingerprints.add(planned(path).fingerprint())
    assert len(fingerprints) == 6
    assert all(len(name) == 12 for name in fingerprints)


def test_the_stamp_of_a_folder_covers_its_files(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a").write_text("123")
    (tmp_path / "d/b").write_text("45")
    size, latest = source_stamp(tmp_path / "d")
    assert size == 5
    assert latest == max((tmp_path / f"d/{name}").stat().st_mtime_ns for name in "ab")
