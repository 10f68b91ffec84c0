"""The benchmark of loading, run tiny: that it measures what it says, not how fast anything is."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest

import benchmarks
from benchmarks import fingerprints as checks
from benchmarks import load, load_report, load_summary, measure, screens
from benchmarks.__main__ import main
from benchmarks.loaders import BEST, LIMIT, OWN, RIVALS, WIDE, annbatch, limit
from benchmarks.loaders.base import CHUNKS, ENDPOINTS, Genes, Job, fingerprints
from benchmarks.processes import RunFailedError, probe, run_worker
from benchmarks.screens import Groups

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks need /proc")

ROOT = Path(benchmarks.__file__).parents[1]
SCREEN = {"cells": 1500, "genes": 100, "nnz": 30}
TINY = ["--cells", "1500", "--genes", "100", "--nnz", "30", "--cell-types", "2", "--perturbations", "8"]
TINY += ["--runs", "1", "--seconds", "0.05", "--sweep-seconds", "0", "--sweep", "16x8x16"]
TINY += ["--sentence-size", "16", "--sentences-per-batch", "2"]
HAS_ANNBATCH = importlib.util.find_spec("annbatch") is not None


def a_run(rival=OWN, endpoint="csr", cache="warm", number=0, **changes):
    """What a worker reports, with every number 1 but for the changes."""
    keys = {*load_summary.SPREAD, *load_summary.MEDIANS, *load_summary.PER_CELL}
    run = {"rival": rival, "endpoint": endpoint, "cache": cache, "round": number, "padding_share": None, "notes": {}}
    return run | dict.fromkeys(keys, 1) | changes


@pytest.fixture(scope="module")
def screen(tmp_path_factory):
    groups = Groups(cell_types=2, perturbations=8)
    return screens.plain(tmp_path_factory.mktemp("screens"), **SCREEN, groups=groups)


@pytest.fixture(scope="module")
def genes(screen):
    return checks.genes_of(screen)


@pytest.fixture(scope="module")
def cells(screen, genes):
    return checks.Cells.of(screen, genes)


@pytest.fixture(scope="module")
def adata(screen):
    return anndata.read_h5ad(screen)


def command(work, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "load", *TINY, "--work", str(work), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads((work / "load.json").read_text()), done.stdout


@pytest.mark.slow
class TestTheCommand:
    def test_lazypert_and_the_limit(self, tmp_path):
        seen, printed = command(tmp_path, "--rivals", f"{OWN},{LIMIT}", "--endpoints", "csr,hvg+controls")
        check(seen)
        pairs = [(run["rival"], run["endpoint"], run["cache"]) for run in seen["runs"]]
        assert pairs == [
            (LIMIT, CHUNKS, "warm"),
            *((OWN, endpoint, cache) for cache in ("warm", "cold") for endpoint in ("csr", "hvg+controls")),
        ]
        (bound,) = [result for result in seen["results"] if result["rival"] == LIMIT]
        assert set(bound["lazypert_is_faster_by"]) == {"csr", "hvg+controls"}
        assert bound["notes"]["chunks_per_batch"] > 0
        assert [(found["endpoint"], found["kind"]) for found in seen["overlap"]] == [
            ("csr", "device"),
            ("csr", "compute"),
        ]
        assert all(found["ratio"]["median"] > 0.5 for found in seen["overlap"])
        assert all(found["floor"] >= 1 for found in seen["overlap"])
        assert printed.strip() == (tmp_path / "load.md").read_text().strip()
        assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")
        assert str(tmp_path) not in (tmp_path / "load.json").read_text() + printed

    @pytest.mark.skipif(not HAS_ANNBATCH, reason="annbatch is not installed")
    def test_annbatch(self, tmp_path):
        rivals = f"annbatch-class,{BEST}"
        chosen = ["--rivals", rivals, "--endpoints", "dense+controls", "--caches", "warm", "--no-overlap"]
        seen, printed = command(tmp_path, *chosen)
        check(seen)
        pairs = [(run["rival"], run["notes"]["setting"]) for run in seen["runs"]]
        assert pairs == [("annbatch-class", load.CLASS_SETTING), (BEST, seen["best"][BEST])]
        assert [trial["setting"] for trial in seen["sweep"]] == 2 * ["16x8x16"]
        assert all(run["notes"]["codecs"] in ("zarrs", "zarr") for run in seen["runs"])
        assert f"which selected {seen['best'][BEST]}" in printed

    @pytest.mark.slow
    @pytest.mark.skipif(not HAS_ANNBATCH, reason="annbatch is not installed")
    def test_every_rival_that_is_installed_to_every_endpoint(self, tmp_path):
        seen, _ = command(tmp_path, "--sweep", "16x8x16,32x4x16")
        check(seen)
        assert set(seen["skipped"]) == {name for name, rival in RIVALS.items() if rival.slow}
        ran = {(run["rival"], run["endpoint"], run["cache"]) for run in seen["runs"]}
        able = {name: rival for name, rival in RIVALS.items() if not rival.slow}
        assert ran == {
            (name, endpoint, cache)
            for name, rival in able.items()
            for endpoint in rival.endpoints
            for cache in (("warm", "cold") if rival.cold else ("warm",))
        }

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (["--rivals", "anmbatch"], "anmbatch"),
            (["--endpoints", "csr,sparse"], "sparse"),
            (["--sweep", "32x7x10"], "32x7x10"),
            (["--python", "cell-load"], "PACKAGE=PATH"),
            (["--python", "cellload=/bin/python"], "cellload"),
            (["--seconds", "-1"], "-1"),
        ],
    )
    def test_refuses_what_it_does_not_know(self, arguments, named, capsys):
        with pytest.raises(SystemExit):
            main(["load", *arguments])
        assert named in capsys.readouterr().err


def check(seen):
    """Nothing went wrong, and every number that the report promises is there, and possible."""
    assert not seen["failed"]
    assert not seen["disagreements"]
    for run in seen["runs"]:
        assert "rows" not in run
        assert run["cells"] > 0
        assert run["batches"] > 0
        assert run["cells_per_s"] == pytest.approx(run["cells"] / run["measured_seconds"])
        assert run["first_batch_seconds"] > 0
        assert run["import_seconds"] > 0
        assert 10e6 < run["import_peak_bytes"] <= run["peak_bytes"] < 4e9
        assert min(run["rchar"], run["read_bytes"]) >= 0


class TestRounds:
    @pytest.fixture
    def run_with(self, tmp_path, monkeypatch, capsys):
        """Run the benchmark with loaders that answer at once."""

        def run(measured, **options):
            def answer(_, rival, endpoint, cache, seconds, **more):
                return {"rows": [], "control_rows": []} | measured(rival, endpoint, cache, seconds, **more)

            monkeypatch.setattr(load._Bench, "_measure", answer)
            monkeypatch.setattr(load._Sources, "_store", lambda self, _: self.work)
            monkeypatch.setattr(load, "probe", lambda *_: {"absent": [], "python": "3"})
            found = load.run(
                load.Options(**SCREEN, cell_types=2, perturbations=8, work=tmp_path, overlap=False, **options)
            )
            return found, capsys.readouterr().out

        return run

    @staticmethod
    def answer(rival, endpoint, cache, seconds, **_):
        return a_run(rival, endpoint, cache)

    def test_each_round_has_every_job_and_starts_with_another_rival(self, run_with):
        rivals = (OWN, "annbatch-class", "annbatch-random")
        found, _ = run_with(self.answer, runs=3, rivals=rivals, endpoints=("csr", "csr+controls"))
        order = [(run["cache"], run["endpoint"], run["rival"]) for run in found["runs"]]
        rounds = [order[at : at + 10] for at in (0, 10, 20)]
        assert all(len(set(jobs)) == 10 for jobs in rounds)
        assert [jobs[0][2] for jobs in rounds] == list(rivals)
        assert not any(e == "csr+controls" and rival == "annbatch-random" for _, e, rival in order)

    def test_the_slow_run_once_and_longer_and_only_with_an_interpreter(self, run_with):
        given = []

        def measured(rival, endpoint, cache, seconds):
            given.append((rival, seconds))
            return a_run(rival, endpoint, cache)

        options = {"rivals": (OWN, "cell-load", "diffbio"), "endpoints": ("dense+controls",), "caches": ("warm",)}
        found, printed = run_with(measured, runs=2, seconds=3, slow_seconds=40, python=(("cell-load", "p"),), **options)
        assert [run["rival"] for run in found["runs"]] == [OWN, "cell-load", OWN]
        assert given[-3:] == [(OWN, 3), ("cell-load", 40), (OWN, 3)]
        assert "--python diffbio=PATH" in found["skipped"]["diffbio"]
        assert "diffbio: needs an interpreter" in printed

    def test_a_failing_rival_is_named_and_the_others_continue(self, run_with):
        def measured(rival, endpoint, cache, seconds):
            if rival == "annbatch-class":
                raise RunFailedError("exit status -9: it said nothing")
            return a_run(rival, endpoint, cache)

        found, printed = run_with(measured, runs=1, rivals=("annbatch-class", OWN), endpoints=("csr",))
        assert found["failed"] == {"annbatch-class": "exit status -9: it said nothing"}
        assert {run["rival"] for run in found["runs"]} == {OWN}
        assert "annbatch-class: exit status -9" in printed

    def test_rows_that_are_not_cells_are_reported(self, run_with):
        found, printed = run_with(
            lambda *given: self.answer(*given) | {"rows": [1, 2]},
            runs=1,
            rivals=(OWN,),
            endpoints=("hvg",),
            caches=("cold",),
        )
        (line,) = found["disagreements"]
        assert line == "lazypert to hvg (cold): 2 of 2 rows are not cells of the screen"
        assert line in printed

    def test_the_best_of_the_sweep_is_used(self, run_with):
        given = []

        def measured(rival, endpoint, cache, seconds, setting=""):
            given.append(setting)
            return a_run(rival, endpoint, cache, cells_per_s={"8x8x8": 2, "4x4x4": 1}.get(setting, 1))

        settings = ("4x4x4", "8x8x8", "64x1x64")
        found, _ = run_with(measured, runs=1, rivals=(BEST, WIDE), endpoints=("csr",), sweep=settings)
        assert found["best"] == {BEST: "8x8x8", WIDE: "64x1x64"}
        assert [setting for setting in given if setting] == 2 * [*settings]

    def test_without_a_setting_for_it_a_rival_is_skipped(self, run_with):
        found, _ = run_with(self.answer, runs=1, rivals=(OWN, WIDE), endpoints=("csr",), sweep=("4x4x4",))
        assert found["skipped"] == {WIDE: "the sweep has no suitable setting"}
        assert {run["rival"] for run in found["runs"]} == {OWN}


class TestFingerprints:
    """Fingerprints identify the cells that a loader delivered."""

    def told(self, genes, adata, rows, form="csr"):
        values = adata.X[rows]
        if form != "csr":
            values = values.toarray()
        return fingerprints(values[:, genes.hvg] if form == "hvg" else values, genes.weights_of(form))

    @pytest.mark.parametrize("form", ["csr", "dense", "hvg"])
    def test_every_cell_is_known(self, genes, cells, adata, form):
        rows = np.random.default_rng(0).permutation(adata.n_obs)
        numbers = [cells.number[form][value] for value in self.told(genes, adata, rows, form)]
        assert all(number in (row, -1) for number, row in zip(numbers, rows.tolist(), strict=True))
        assert form == "hvg" or numbers == rows.tolist()

    def test_sparse_rows_of_any_kind_are_identified(self, genes, adata):
        class Rows:
            indptr = None  # not SciPy's

            def to_scipy(self):
                return adata.X[:5]

        assert fingerprints(Rows(), genes.weights) == self.told(genes, adata, slice(5), "dense")
        assert fingerprints(adata.X[:6].toarray().reshape(3, 2, -1), genes.weights)[:5] == self.told(
            genes, adata, slice(5)
        )

    def test_problems_are_reported(self, genes, cells, adata):
        groups = adata.obs.groupby(["cell_type", "perturbation"], observed=True).indices
        large = [rows for (_, label), rows in groups.items() if len(rows) >= 4 and label != "non-targeting"]
        control = {kind: rows for (kind, label), rows in groups.items() if label == "non-targeting"}
        rows = large[0][:4]
        mine, other = (
            control[kind][:4] for kind in sorted(control, key=lambda k: k != adata.obs["cell_type"].iloc[rows[0]])
        )

        def found(rows, controls=(), size=4):
            run = {"rows": self.told(genes, adata, rows), "control_rows": self.told(genes, adata, list(controls))}
            return checks.problems(run, cells, form="csr", controls=len(controls) > 0, sentence_size=size)

        assert found(rows) == []
        assert found(rows, mine) == []
        mixed = [*large[0][:3], large[1][0]]
        assert found(mixed) == ["1 of 1 sentences contain cells of several groups"]
        assert found(mixed, size=None) == []
        assert found(rows, mine[:3]) == ["4 cells have 3 controls"]
        assert found(rows, rows) == ["4 of 4 controls are not controls"]
        assert found(rows, other) == ["4 of 4 controls have a different cell type"]


class TestScreens:
    def test_groups_decide_the_groups_and_the_order(self, tmp_path, screen):
        groups = Groups(cell_types=2, perturbations=8, in_order=True)
        ordered = anndata.read_h5ad(screens.plain(tmp_path, **SCREEN, groups=groups)).obs
        assert len(ordered.groupby(["cell_type", "perturbation"], observed=False)) == 16
        codes = ordered.groupby(["cell_type", "perturbation"], observed=True).ngroup().to_numpy()
        assert (np.diff(codes) != 0).sum() == len(np.unique(codes)) - 1
        shuffled = anndata.read_h5ad(screen).obs["perturbation"].cat.codes
        assert (np.diff(shuffled) != 0).mean() > 0.5

    def test_variable_genes_stand_beside_the_matrix(self, screen, genes, monkeypatch):
        monkeypatch.setattr(screens, "NUMBERS", 5000)  # several pieces
        with h5py.File(screens.with_hvg(screen)) as file, h5py.File(screen) as source:
            assert (file["X/data"][:] == source["X/data"][:]).all()
            whole = np.concatenate([rows.toarray() for _, rows in screens.row_blocks(file["X"])])
            assert len(whole) == SCREEN["cells"]
            assert (file["obsm/X_hvg"][:] == whole[:, genes.hvg]).all()


class TestLimit:
    def test_its_chunks_decode_to_the_matrix(self, screen, tmp_path):
        from numcodecs import blosc

        import lazypert as lp

        lp.convert(screen, tmp_path / "s.zarr", pert_col="perturbation", control_pert="non-targeting")
        import zarr

        for name in ("data", "indices"):
            array = zarr.open_array(tmp_path / "s.zarr" / "X" / name, mode="r")
            chunks = limit.Chunks.of(tmp_path / "s.zarr" / "X" / name)
            decoded = [np.frombuffer(blosc.decompress(body), array.dtype) for body in chunks.bodies]
            assert {len(part) for part in decoded} == {chunks.length}
            assert {part.nbytes for part in decoded} == {chunks.size}
            assert (np.concatenate(decoded)[: array.shape[0]] == array[:]).all()

    def test_chunks_that_rows_touch(self):
        indptr = np.array([0, 5, 10, 10, 25, 30])
        assert limit.touched(np.array([0]), indptr, 10) == [0]
        assert limit.touched(np.array([3]), indptr, 10) == [1, 2]
        assert limit.touched(np.array([0, 1, 3]), indptr, 10) == [0, 1, 2]
        assert limit.touched(np.array([1, 1]), indptr, 10) == [0]
        assert limit.touched(np.array([2]), indptr, 7) == []  # an empty row


class TestAnnbatch:
    def test_setting_reads_what_it_writes(self):
        for text in ("32x128x32", "8x4x16@zarr"):
            assert str(annbatch.Setting.parse(text)) == text

    @pytest.mark.parametrize("text", ["32x128", "32x128x3", "0x1x1", "32x128x32@rust", "axbxc"])
    def test_setting_refuses(self, text):
        with pytest.raises(ValueError):
            annbatch.Setting.parse(text)

    def test_classes_that_are_too_short_are_left_out(self):
        classes = annbatch.Classes(
            codes=np.repeat([0, 1, 2, 3, 4], [4, 2, 6, 3, 1]),
            cell_type=np.array([0, 0, 0, 1, 1]),
            is_control=np.array([True, False, False, False, True]),
            shortest=np.array([4, 2, 6, 3, 1]),
        )
        weights, none = classes.weights(3, controls=False)
        assert weights.tolist() == [4, 0, 6, 3, 0]
        assert none is None
        # The second type's controls are too few, and so are its classes left out.
        weights, controls = classes.weights(3, controls=True)
        assert weights.tolist() == [4, 0, 6, 0, 0]
        assert controls.tolist() == [10, 0, 0, 0, 0]

    def test_controls_wait_for_cells_of_their_type(self):
        type_of = np.array([0, 1])
        main = [{"index": [at]} for at in (0, 0, 1, 1)]
        controls = iter([{"index": [at], "number": n} for n, at in enumerate((1, 0, 0, 1))])
        pairs = list(annbatch._matched(main, controls, type_of))
        assert [control["number"] for _, control in pairs] == [1, 2, 0, 3]


class TestProcesses:
    def test_probe_knows_what_is_missing(self):
        found = probe(sys.executable, ("numpy", "no_such_module"), ("numpy", "no-such-package"))
        assert found["absent"] == ["no_such_module"]
        assert found["numpy"] == np.__version__
        assert found["no-such-package"] is None

    def test_a_file_that_is_not_an_interpreter_is_named(self):
        with pytest.raises(RunFailedError, match="no-python-here"):
            probe("/no-python-here", (), ())

    def test_worker_that_fails_says_why(self, tmp_path, genes):
        genes.save(tmp_path / "genes.npz")
        job = Job(
            rival=OWN,
            endpoint="csr",
            source=str(tmp_path / "nothing.zarr"),
            genes=str(tmp_path / "genes.npz"),
            sentence_size=2,
            sentences_per_batch=2,
            seconds=0,
        )
        with pytest.raises(RunFailedError, match=r"nothing\.zarr"):
            run_worker("benchmarks._load_worker", json.dumps(asdict(job)))

    def test_genes_read_what_they_saved(self, tmp_path, genes):
        genes.save(tmp_path / "genes.npz")
        held = Genes.load(tmp_path / "genes.npz")
        assert held.names == genes.names
        assert (held.hvg == genes.hvg).all()
        assert (held.weights_of("hvg") == genes.weights[genes.hvg]).all()

    def test_processes_that_a_block_started_count(self):
        script = (
            "import json, subprocess, sys, time; from benchmarks.measure import Meter\n"
            "child = 'import sys; held = b\"x\" * 80_000_000; print(flush=True); sys.stdin.read()'\n"
            "with (meter := Meter()):\n"
            "    worker = subprocess.Popen([sys.executable, '-c', child], stdin=-1, stdout=-1)\n"
            "    worker.stdout.readline()\n"
            "worker.communicate()\n"
            "print(json.dumps(meter.used))"
        )
        run = [sys.executable, "-c", script]
        used = json.loads(subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
        assert 70e6 < used["peak_over_imports_bytes"] < 200e6
        assert used["rchar"] > 10_000  # what the other interpreter read to start

    def test_chilled_files_come_from_the_disk_and_warm_ones_do_not(self, tmp_path):
        path = tmp_path / "folder" / "file"
        path.parent.mkdir()
        path.write_bytes(os.urandom(8_000_000))
        for prepare, least, most in ((measure.chill, 0, 9e6), (measure.warm, 0, 1e6)):
            prepare(tmp_path)
            before = measure.io_bytes()["read_bytes"]
            path.read_bytes()
            assert least <= measure.io_bytes()["read_bytes"] - before <= most


class TestSummary:
    STEP = ("endpoint", "kind", "load_seconds", "step_seconds", "both_seconds", "cpu_seconds_each_core")

    def test_ratios_are_taken_within_a_round(self):
        mine = [a_run(number=n, cells_per_s=s) for n, s in enumerate([10, 30, 20])]
        theirs = [a_run("annbatch-class", number=n, cells_per_s=s) for n, s in ((2, 5), (0, 2), (1, 10))]
        assert load_summary.speed_ratio(mine, theirs) == 4  # of 5, 3 and 4
        assert load_summary.speed_ratio(mine[:1], theirs[:1]) is None

    def test_a_result_for_each_rival_endpoint_and_cache(self):
        runs = [a_run(number=n, cells_per_s=s, cells=4, rchar=8, padding_share=0.5) for n, s in enumerate([4, 2, 3])]
        runs += [a_run("annbatch-class", number=n) for n in range(3)]
        runs += [
            a_run("annbatch-class", "dense"),
            a_run(cache="cold", cells_per_s=9),
            a_run(LIMIT, CHUNKS, cells_per_s=8),
        ]
        mine, theirs, alone, cold, bound = load_summary.summarise(runs)
        assert mine["cells_per_s"] == {"min": 2, "median": 3, "max": 4}
        assert (mine["runs"], mine["rchar_per_cell"], mine["padding_share"]) == (3, 2, 0.5)
        assert mine["lazypert_is_faster_by"] == cold["lazypert_is_faster_by"] == alone["lazypert_is_faster_by"] == {}
        assert theirs["lazypert_is_faster_by"] == {"csr": 3}
        assert theirs["padding_share"] is None
        assert bound["lazypert_is_faster_by"] == {"csr": 0.5}  # a share: of the same round, warm

    def test_best_setting_is_that_of_the_median(self):
        trials = [("a", 9), ("a", 1), ("a", 2), ("b", 3), ("b", 4), ("b", 3)]
        assert load_summary.best_setting([{"setting": s, "cells_per_s": v} for s, v in trials]) == "b"
        assert load_summary.best_setting([]) is None

    def test_overlap_is_over_the_longer_of_the_two(self):
        runs = [
            dict(zip(self.STEP, ("csr", "device", *seconds), strict=True))
            for seconds in ((2, 1, 3, 3), (1, 2, 2, 1), (1, 1, 1.25, 1.25))
        ]
        (found,) = load_summary.overlaps(runs)
        assert found["ratio"] == {"min": 1, "median": 1.25, "max": 1.5}
        assert found["floor"] == 1.25
        assert found["runs"] == 3


def test_tables_have_a_row_for_every_result():
    said = {"setting": "1x1x1", "codecs": "zarr", "classes": 3, "classes_left_out": 1, "cells_left_out": 5}
    runs = [
        a_run(name, endpoint, cache, notes=said if "annbatch" in name else {"chunks_per_batch": 2.5})
        for cache in ("warm", "cold")
        for name, rival in RIVALS.items()
        for endpoint in rival.endpoints
        if cache == "warm" or rival.cold
    ]
    steps = [dict(zip(TestSummary.STEP, ("csr", "device", 1, 1, 1.5, 1.25), strict=True))]
    screen = {"cells": 1, "genes": 1, "nnz": 1, "bytes": 1, "groups": 1, "median_group": 1}
    text = load_report.markdown(
        {
            "made": "2000-01-01",
            "machine": {"processor": "P", "cpus": 2, "memory": 1024, "system": "S", "python": "3"},
            "versions": {"lazypert": "1", "annbatch": None},
            "interpreters": {"cell-load": {"python": "3.11", "versions": {"cell-load": "0.10.4", "torch": None}}},
            "options": {"sentence_size": 32, "sentences_per_batch": 8, "seconds": 6.0, "slow_seconds": 30.0},
            "screens": {"the screen": screen},
            "runs": runs,
            "results": load_summary.summarise(runs),
            "overlap": load_summary.overlaps(steps),
            "sweep": [{"setting": "1x1x1", "cells_per_s": 1}],
            "best": {BEST: "1x1x1"},
            "skipped": {"other": "not installed"},
            "failed": {},
            "disagreements": [],
        }
    )
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    tables = 2 * (len(runs) + 4) + (2 + len(ENDPOINTS)) + 3 + 3
    assert len(rows) == tables
    assert "Against the limit (2.5 chunks decoded per batch)" in text
    assert "1 of 3 classes (5 cells) left out" in text
    assert "| csr      | device |" in text
    assert "1.500 (1.500-1.500)" in text
    assert "- cell-load runs in Python 3.11 with cell-load 0.10.4" in text
    assert "- other: not installed" in text
    assert "None" not in text
