"""The benchmark of loading, run tiny: that it measures what it says, not how fast anything is."""

import importlib.util
import json
import sys

import anndata
import h5py
import numpy as np
import pytest

from benchmarks import load, screens
from benchmarks.__main__ import main
from benchmarks.loaders import BEST, LIMIT, OWN, RIVALS, WIDE, annbatch, limit
from benchmarks.loaders.base import CHUNKS
from benchmarks.processes import RunFailedError
from benchmarks.screens import Groups
from tests.support.load_runs import SCREEN, a_run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks need /proc")

TINY = ["--cells", "1500", "--genes", "100", "--nnz", "30", "--cell-types", "2", "--perturbations", "8"]
TINY += ["--runs", "1", "--seconds", "0.05", "--sweep-seconds", "0", "--sweep", "16x8x16"]
TINY += ["--sentence-size", "16", "--sentences-per-batch", "2"]
HAS_ANNBATCH = importlib.util.find_spec("annbatch") is not None


@pytest.mark.slow
class TestTheCommand:
    @pytest.fixture
    def command(self, tmp_path, capsys):
        """Run the command in this process, which has imported everything; each measurement is in its own process."""

        def run(*arguments):
            main(["load", *TINY, "--work", str(tmp_path), *arguments])
            return json.loads((tmp_path / "load.json").read_text()), capsys.readouterr().out

        return run

    def test_lazypert_and_the_limit(self, command, tmp_path):
        chosen = ["--rivals", f"{OWN},{LIMIT}", "--endpoints", "csr,hvg+controls", "--caches", "warm"]
        seen, printed = command(*chosen)
        check(seen)
        pairs = [(run["rival"], run["endpoint"], run["cache"]) for run in seen["runs"]]
        assert pairs == [
            (LIMIT, CHUNKS, "warm"),
            *((OWN, endpoint, "warm") for endpoint in ("csr", "hvg+controls")),
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
    @pytest.mark.timeout(1800)  # a dozen processes, each with its imports
    def test_every_other_rival_that_is_installed(self, command, monkeypatch):
        monkeypatch.setattr(load, "SWEEP_ROUNDS", 1)
        others = {name: rival for name, rival in RIVALS.items() if name not in (OWN, LIMIT)}
        chosen = ["--rivals", ",".join(others), "--endpoints", "csr", "--caches", "cold", "--no-overlap"]
        seen, _ = command("--sweep", "16x8x16,32x4x16", *chosen)
        check(seen)
        assert set(seen["skipped"]) == {name for name, rival in others.items() if rival.slow}
        expected = {(name, "csr", "cold") for name, rival in others.items() if not rival.slow}
        assert {(run["rival"], run["endpoint"], run["cache"]) for run in seen["runs"]} == expected
        settings = {run["rival"]: run["notes"]["setting"] for run in seen["runs"] if "setting" in run["notes"]}
        assert settings["annbatch-class"] == load.CLASS_SETTING
        assert settings[BEST] == seen["best"][BEST]
        assert {trial["setting"] for trial in seen["sweep"]} == {"16x8x16", "32x4x16"}
        codecs = {run["notes"]["codecs"] for run in seen["runs"] if run["rival"].startswith("annbatch")}
        assert codecs <= {"zarrs", "zarr"}

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

        for name, stored in (("data", "u2"), ("indices", "u2")):
            array = zarr.open_array(tmp_path / "s.zarr" / "X" / name, mode="r")
            chunks = limit.Chunks.of(tmp_path / "s.zarr" / "X" / name)
            decoded = [np.frombuffer(blosc.decompress(body), stored) for body in chunks.bodies]
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
