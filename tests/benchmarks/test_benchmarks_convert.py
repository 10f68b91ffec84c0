"""The benchmarks, run tiny: that they measure what they say, not how fast anything is."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest

import benchmarks
from benchmarks import convert, measure, report, screens, summary
from benchmarks.__main__ import main
from benchmarks.rivals import RIVALS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks need /proc")

ROOT = Path(benchmarks.__file__).parents[1]
TINY = ["--cells", "600", "--genes", "50", "--nnz", "20", "--runs", "1", "--factor", "2"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return screens.plain(tmp_path_factory.mktemp("screens"), cells=300, genes=40, nnz=10)


def a_run(rival="lazypert", screen="uncompressed", number=0, **changes):
    """What a worker reports, with every number 1 but for the changes."""
    keys = {*summary.SPREAD, *summary.MEDIANS, "cells", "nnz", "sum"}
    return {"rival": rival, "screen": screen, "round": number} | dict.fromkeys(keys, 1) | changes


def command(work, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "convert", *TINY, "--work", str(work), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((work / "convert.json").read_text()), done.stdout


def check_run(run, *, cells):
    """Every number that the report promises is there, and possible."""
    assert run["cells"] == cells
    assert run["seconds"] > 0
    assert run["import_seconds"] > 0
    assert run["flush_seconds"] >= 0
    assert run["cpu_user_s"] + run["cpu_system_s"] > 0
    assert 10e6 < run["import_peak_bytes"] <= run["peak_bytes"] < 4e9
    assert run["peak_over_imports_bytes"] == run["peak_bytes"] - run["import_peak_bytes"]
    assert run["store_files"] > 1
    assert run["store_bytes"] > 1000
    assert min(run["rchar"], run["wchar"]) > 1000
    assert min(run["read_bytes"], run["write_bytes"]) >= 0


class TestTheCommand:
    @pytest.mark.slow
    def test_lazypert_alone(self, tmp_path):
        seen, printed = command(tmp_path, "--rivals", "lazypert", "--screens", "gzip")
        (run,) = seen["runs"]
        assert run["screen"] == "gzip"
        check_run(run, cells=600)
        assert run["nnz"] == seen["screens"]["gzip"]["nnz"]
        assert not seen["disagreements"]
        assert printed.strip() == (tmp_path / "convert.md").read_text().strip()
        assert not list(tmp_path.glob("run-*")), "stores are removed"

    @pytest.mark.slow
    def test_every_rival_that_is_installed(self, tmp_path, capsys):
        main(["convert", *TINY, "--work", str(tmp_path), "--screens", "uncompressed", "--scaling"])
        seen, printed = json.loads((tmp_path / "convert.json").read_text()), capsys.readouterr().out
        installed = [name for name in RIVALS if importlib.util.find_spec(name.split("-")[0])]
        assert set(seen["skipped"]) == set(RIVALS) - set(installed)
        assert not seen["failed"]
        assert not seen["disagreements"]
        pairs = {(run["rival"], run["screen"]) for run in seen["runs"]}
        assert pairs == {(name, "uncompressed") for name in installed} | {("lazypert", "larger")}
        for run in seen["runs"]:
            check_run(run, cells=1200 if run["screen"] == "larger" else 600)
            assert run["nnz"] == seen["screens"][run["screen"]]["nnz"]
        sums = {run["sum"] for run in seen["runs"] if run["screen"] != "larger"}
        assert len(sums) == 1
        for result in seen["results"]:
            bases = {name for name in installed if name.startswith("annbatch")} - {result["rival"]}
            assert set(result["ratios"]) == (bases if result["screen"] != "larger" else set())
            assert all(0 < value < 1000 for ratios in result["ratios"].values() for value in ratios.values())
        assert seen["scaling"]["cells_ratio"] == 2
        assert seen["screens"]["larger"]["nnz"] == 2 * seen["screens"]["uncompressed"]["nnz"]
        assert (tmp_path / "convert.png").read_bytes().startswith(b"\x89PNG")
        assert str(tmp_path) not in (tmp_path / "convert.json").read_text() + printed

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [(["--rivals", "lazypert,anmdata"], "anmdata"), (["--cells", "0"], "'0'"), (["--screens", "zip"], "zip")],
    )
    def test_refuses_what_it_does_not_know(self, arguments, named, capsys):
        with pytest.raises(SystemExit):
            main(["convert", *arguments])
        assert named in capsys.readouterr().err


class TestRounds:
    @pytest.fixture
    def run_with(self, tmp_path, monkeypatch, capsys):
        """Run the benchmark with conversions that answer at once."""

        def run(measured, **options):
            monkeypatch.setattr(convert, "_measure", lambda rival, screen, *_: measured(rival, screen))
            monkeypatch.setattr(convert.RIVALS["annbatch-shuffled"].__class__, "missing", lambda _: None)
            found = convert.run(convert.Options(cells=128, genes=20, nnz=5, work=tmp_path, **options))
            return found, capsys.readouterr().out

        return run

    @staticmethod
    def answer(rival, screen):
        return a_run(rival, cells=screen.cells, nnz=screen.nnz)

    def test_each_round_has_every_job_and_starts_with_another_rival(self, run_with):
        rivals = ("lazypert", "annbatch-shuffled", "anndata")
        found, _ = run_with(lambda r, s: self.answer(r, s) | {"screen": s.name}, runs=3, rivals=rivals)
        order = [(run["screen"], run["rival"]) for run in found["runs"]]
        rounds = [order[at : at + 6] for at in (0, 6, 12)]
        assert all(len(set(jobs)) == 6 for jobs in rounds)
        assert [jobs[0][1] for jobs in rounds] == list(rivals)
        assert all([screen for screen, _ in jobs] == 3 * ["uncompressed"] + 3 * ["gzip"] for jobs in rounds)

    def test_a_failing_rival_is_named_and_the_others_continue(self, run_with):
        def measured(rival, screen):
            if rival == "anndata":
                raise convert.RunFailedError("exit status -9: it said nothing")
            return self.answer(rival, screen)

        found, printed = run_with(measured, runs=1, rivals=("anndata", "lazypert"), screens=("uncompressed",))
        assert found["failed"] == {"anndata": "exit status -9: it said nothing"}
        assert [run["rival"] for run in found["runs"]] == ["lazypert"]
        assert "anndata: exit status -9" in printed

    def test_scaling_needs_lazypert_whoever_else_runs(self, run_with):
        found, _ = run_with(
            lambda r, s: self.answer(r, s) | {"screen": s.name, "seconds": s.cells / 100},
            runs=2,
            rivals=("anndata",),
            screens=("uncompressed",),
            scaling=True,
            factor=3,
        )
        assert [run["rival"] for run in found["runs"]] == 2 * ["anndata", "lazypert", "lazypert"]
        assert found["scaling"]["time_ratio"] == pytest.approx(3)
        assert found["scaling"]["time_over_linear"] == pytest.approx(1)


class TestScreens:
    def test_gzip_holds_the_same(self, plain):
        path = screens.compressed(plain)
        with h5py.File(path) as file:
            assert (file["X/data"].compression, file["X/data"].compression_opts) == ("gzip", 4)
        assert_same(anndata.read_h5ad(path), anndata.read_h5ad(plain))

    def test_repeated_holds_the_rows_again_under_new_names(self, plain, monkeypatch):
        monkeypatch.setattr(screens, "NUMBERS", 700)  # several slabs
        monkeypatch.setattr(screens, "STRINGS", 110)
        once, thrice = anndata.read_h5ad(plain), anndata.read_h5ad(screens.repeated(plain, 3))
        assert thrice.shape == (900, 40)
        assert thrice.obs_names.is_unique
        for copy in range(3):
            part = thrice[300 * copy : 300 * (copy + 1)].copy()
            part.obs_names = part.obs_names.str.removesuffix(f"-{copy}") if copy else part.obs_names
            assert_same(part, once)

    def test_indptr_grows_when_it_must(self, plain):
        with h5py.File(plain) as file:
            indptr = file["X/indptr"]
            small = screens._repeat("/X/indptr", indptr, 2, 2**30 - 1)
            large = screens._repeat("/X/indptr", indptr, 2, 2**30)
        assert (small[1], large[1]) == (np.int32, np.int64)

    def test_are_made_once(self, plain):
        stamps = [path.stat().st_mtime_ns for path in (plain, screens.compressed(plain), screens.repeated(plain, 2))]
        again = screens.plain(plain.parent, cells=300, genes=40, nnz=10)
        assert [p.stat().st_mtime_ns for p in (again, screens.compressed(again), screens.repeated(again, 2))] == stamps

    def test_one_that_was_cut_short_does_not_count(self, plain, tmp_path, monkeypatch):
        source = tmp_path / plain.name
        source.write_bytes(plain.read_bytes())
        monkeypatch.setattr(screens, "_slabs", lambda *_: iter([1 / 0]))
        with pytest.raises(ZeroDivisionError):
            screens.compressed(source)
        assert list(tmp_path.iterdir()) == [source]


class TestMeasuring:
    def test_memory_and_bytes_are_those_of_the_block(self, tmp_path):
        script = (
            "import json, sys; from benchmarks.measure import Meter\n"
            "with (meter := Meter()): open(sys.argv[1], 'wb').write(b'x' * 50_000_000)\n"
            "print(json.dumps(meter.used))"
        )
        run = [sys.executable, "-c", script, str(tmp_path / "out")]
        used = json.loads(subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
        assert 49e6 < used["peak_over_imports_bytes"] < 60e6  # the kernel counts in batches of pages
        assert used["import_peak_bytes"] < 50e6  # this process has hundreds of MB, and they are not inherited
        assert 50_000_000 <= used["wchar"] < 50_100_000
        assert used["rchar"] < 1_000_000

    def test_size_is_that_of_all_files(self, tmp_path):
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "one").write_bytes(b"12")
        (tmp_path / "a" / "b" / "two").write_bytes(b"345")
        assert measure.tree_bytes(tmp_path) == 5
        assert len(measure.tree_files(tmp_path)) == 2


class TestSummary:
    def test_ratios_are_taken_within_a_round(self):
        mine = [a_run(number=n, seconds=s) for n, s in enumerate([1, 30, 20])]
        theirs = [a_run("annbatch-shuffled", number=n, seconds=s) for n, s in ((2, 100), (0, 2), (1, 10))]
        assert summary.ratios(mine, theirs)["seconds"] == 0.5  # of 0.5, 3 and 0.2; of the medians it would be 2
        assert summary.ratios(mine[:1], theirs)["seconds"] == 0.5
        assert summary.ratios(mine[:1], theirs[:1]) == {}

    def test_a_result_for_each_rival_and_screen(self):
        runs = [a_run(number=n, seconds=s, cells=600, nnz=12_000) for n, s in enumerate([4, 2, 3])]
        runs += [a_run("annbatch-grouped", number=n, seconds=6, store_bytes=4) for n in range(3)]
        mine, theirs = summary.summarise(runs)
        assert mine["seconds"] == {"min": 2, "median": 3, "max": 4}
        assert (mine["cells_per_s"], mine["nnz_per_s"], mine["runs"]) == (200, 4000, 3)
        assert mine["ratios"]["annbatch-grouped"]["seconds"] == 0.5
        assert mine["ratios"]["annbatch-grouped"]["store_bytes"] == 0.25
        assert theirs["ratios"] == {}

    def test_a_peak_not_above_the_imports_has_no_ratio(self):
        theirs = [a_run("annbatch-shuffled", peak_over_imports_bytes=0)]
        assert set(summary.ratios([a_run()], theirs)) == set(summary.COMPARED) - {"peak_over_imports_bytes"}

    def test_no_scaling_without_the_larger_screen(self):
        assert summary.scaling([a_run()]) is None

    @pytest.mark.parametrize("key", ["cells", "nnz", "sum"])
    def test_stores_that_differ_are_named(self, key):
        files = {"uncompressed": {"cells": 1, "nnz": 1}}
        runs = [a_run(), a_run("anndata"), a_run("anndata", number=1)]
        assert summary.disagreements(runs, files) == []
        runs[1][key] = runs[2][key] = 2
        (line,) = summary.disagreements(runs, files)
        assert line.startswith(f"anndata on uncompressed: {key}: got 2, expected 1")


def test_tables_have_a_row_for_every_result():
    runs = [a_run(rival, screen) for screen in ("uncompressed", "gzip") for rival in RIVALS]
    runs.append(a_run(screen="larger", cells=2))
    text = report.markdown(
        {
            "made": "2000-01-01",
            "machine": {"processor": "P", "cpus": 2, "memory": 1024, "system": "S", "python": "3"},
            "versions": {"lazypert": "1", "annbatch": None},
            "options": {"memory_limit": "512MiB"},
            "screens": {"uncompressed": {"cells": 1, "genes": 1, "nnz": 1, "bytes": 1}},
            "runs": runs,
            "results": summary.summarise(runs),
            "scaling": summary.scaling(runs),
            "skipped": {"other": "not installed"},
            "failed": {},
            "disagreements": [],
        }
    )
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    # Two tables of all results, and one of each annbatch's: all but the larger screen and its own.
    assert len(rows) == 2 * (2 + 9) + 2 * (2 + 6)
    assert "2 times the cells: 1.00 times the seconds (0.50 of linear)" in text
    assert "- other: not installed" in text
    assert "None" not in text


def assert_same(found, expected):
    assert (found.X != expected.X).nnz == 0
    assert found.obs.equals(expected.obs)
    assert found.var.equals(expected.var)
