"""The benchmark of fairness, run tiny: that it measures everything, and says plainly what is not as it must be."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks
from benchmarks import fairness, fairness_report
from benchmarks.__main__ import main

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks need /proc")

ROOT = Path(benchmarks.__file__).parents[1]


TINY = {"rows": 2, "scale": 0.02, "epochs": 1}


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The command on a few hundred cells, once it is done, and the folder."""
    work = tmp_path_factory.mktemp("work")
    options = [text for name, value in TINY.items() for text in (f"--{name}", str(value))]
    run = [sys.executable, "-m", "benchmarks", "fairness", *options, "--work", str(work)]
    return subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False), work


@pytest.fixture(scope="module")
def ran(command):
    """The report, what was printed, and the folder."""
    done, work = command
    return json.loads((work / "fairness.json").read_text()), done.stdout, work


@pytest.mark.slow
def test_the_command_exits_with_1_if_something_is_not_as_it_must_be(command):
    done, work = command
    report = json.loads((work / "fairness.json").read_text())
    assert done.returncode == bool(report["disagreements"]), done.stderr  # so few cells may be outside the ranges


@pytest.mark.slow
def test_everything_is_measured(ran):
    report, printed, work = ran
    assert not report["failed"]
    assert len(report["rows"]) == 2
    assert all(0 < row["rms_z"] < 3 and row["n_served"] > 0 for row in report["rows"])
    assert [(row["loader"], row["strategy"]) for row in report["loaders"]] == [
        ("lazypert", s) for s in ("random", "batch")
    ]
    assert [len(row["z"]) for row in report["loaders"]] == [2400, 2400]
    assert len(report["same_controls"]) == 16
    assert {row["different"] for row in report["same_controls"]} == {0}
    (n_cells,) = {row["cells"] for row in report["same_controls"]}
    assert n_cells == pytest.approx(0.8 * (60 * 10 + 192), abs=60)  # of each group, 80 % of the cells train
    assert {row["shuffle_size"] for row in report["neighbours"]} == set(fairness.SHUFFLE_SIZES)
    assert all(set(row["again"]) == {"250", "1000", "9600"} for row in report["meetings"])
    assert set(report["skipped"]) == {"cell-load"}
    assert printed.strip() == (work / "fairness.md").read_text().strip()
    assert (work / "fairness.png").read_bytes().startswith(b"\x89PNG")
    assert str(work) not in printed
    assert sorted(path.name for path in work.iterdir()) == ["fairness.json", "fairness.md", "fairness.png"]


@pytest.mark.slow
def test_the_report_marks_what_is_outside(ran):
    report = json.loads(json.dumps(ran[0]))
    row, same, few = report["rows"][1], report["same_controls"][3], report["neighbours"][0]
    n_cells = same["cells"]
    for each in report["rows"]:
        each["outside"] = []
    row["outside"] = ["rms z is 1.3, expected 0.9 to 1.15"]
    same["different"] = 7
    few["distinct_groups"] = 0.7
    report["disagreements"] = fairness._disagreements(report)
    text = fairness_report.markdown(report)
    assert text.count("OUTSIDE") == 1
    assert "- row 2: rms z is 1.3, expected 0.9 to 1.15" in text
    assert (
        f"- 7 of {n_cells} cells get other controls with 1 host(s), 4 thread(s) and shuffle_size=8192 (random)" in text
    )
    assert "shuffle_size=4096: 16 neighbouring batches show 70% of the groups" in text
    assert "expected at least 80%" in text


def test_the_report_says_when_all_is_well(ran):
    report = ran[0] | {"disagreements": []}
    assert "All 2 rows are within their ranges." in fairness_report.markdown(report)


def test_runs_of_cell_load_are_listed_and_drawn(ran, tmp_path):
    from benchmarks.fairness_chart import draw

    own = ran[0]["loaders"]
    others = [own[0] | {"loader": name, "strategy": s, "workers": n} for name, s, n in fairness.RUNS]
    report = ran[0] | {"loaders": own + others}
    text = fairness_report.markdown(report)
    for name, strategy, workers in fairness.RUNS:
        assert any(
            line.split("|")[1:4] == [f" {name.ljust(22)} ", f" {strategy.ljust(8)} ", f" {str(workers).ljust(7)} "]
            for line in text.splitlines()
        )
    draw(report, tmp_path / "fairness.png")
    assert (tmp_path / "fairness.png").read_bytes().startswith(b"\x89PNG")


def test_an_interpreter_without_cell_load_is_skipped(tmp_path):
    report = {"skipped": {}, "interpreters": {}, "failed": {}}
    options = fairness.Options(scale=0.02, python=(("cell-load", str(tmp_path / "no-python")),))
    found = fairness._compare(options, tmp_path, report)
    assert [row["loader"] for row in found] == ["lazypert", "lazypert"]
    assert set(report["skipped"]) == {"cell-load"}


@pytest.mark.parametrize("arguments", [["--rows", "0"], ["--scale", "0"], ["--python", "cell-load"]])
def test_refuses_what_it_does_not_know(arguments, capsys):
    with pytest.raises(SystemExit):
        main(["fairness", *arguments])
    assert arguments[1] in capsys.readouterr().err
