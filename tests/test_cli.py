from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from lazypert._cli import main
from lazypert.simulate import reference_screen

ROLES = ("--pert-col", "perturbation", "--control-pert", "non-targeting")
ALL_ROLES = (*ROLES, "--cell-type-col", "cell_type", "--batch-col", "batch")


@pytest.fixture(scope="module")
def screen(tmp_path_factory):
    return reference_screen(tmp_path_factory.mktemp("cli") / "screen.h5ad")


@pytest.fixture(scope="module")
def store(screen):
    path = screen.with_name("screen.zarr")
    assert main(["convert", str(screen), str(path), *ALL_ROLES]) == 0
    return path


def fields(text):
    """First value of every ``name   value`` line."""
    out = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        out.setdefault(name, value.strip())
    return out


# -- convert ----------------------------------------------------------------------------------------


def test_convert_makes_a_store_and_sums_it_up(screen, tmp_path, capsys):
    assert main(["convert", str(screen), str(tmp_path / "s.zarr"), *ALL_ROLES]) == 0
    said = capsys.readouterr()
    assert said.err == "", "no progress where stderr is no terminal"
    found = fields(said.out)
    assert found["cells"] == "900"
    assert found["genes"] == "200"
    assert int(found["nonzeros"].replace(",", "")) > 170_000
    assert found["groups"] == "18"
    assert " before, " in found["size"]
    assert found["size"].endswith(" after")
    assert found["time"].endswith(" s")
    assert found["memory"].endswith("iB at the peak")


def test_convert_shows_progress_on_a_terminal(screen, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("lazypert.progress._PATIENCE", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    assert main(["convert", str(screen), str(tmp_path / "s.zarr"), *ALL_ROLES]) == 0
    said = capsys.readouterr()
    assert "X: writing shards" in said.err
    assert "MB" in said.err
    assert "\x1b" not in said.out, "the summary is plain text"


def test_convert_several_files_with_every_option(screen, tmp_path, capsys):
    other = reference_screen(tmp_path / "other.h5ad", seed=1)
    options = ["--join", "outer", "--order", "source", "--seed", "3", "--memory-limit", "200MB", "--overwrite"]
    target = tmp_path / "both.zarr"
    target.mkdir()
    assert main(["convert", str(screen), str(other), str(target), *ALL_ROLES, *options]) == 0
    assert fields(capsys.readouterr().out)["cells"] == "1,800"
    assert main(["info", str(target)]) == 0
    said = capsys.readouterr().out
    assert fields(said)["order"] == "source"
    assert said.count("\nsource  ") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--pert-col", "pertubation", "--control-pert", "non-targeting"), "Did you mean 'perturbation'?"),
        (("--pert-col", "perturbation", "--control-pert", "nontargeting"), "Did you mean 'non-targeting'?"),
        ((*ROLES, "--layer", "counts"), "layer: got 'counts', expected a layer of"),
        ((*ROLES, "--memory-limit", "lots"), "Not a size in bytes"),
        ((*ROLES, "--memory-limit", "1KB"), "memory_limit is too small"),
    ],
    ids=["column", "label", "layer", "size", "limit"],
)
def test_a_refused_conversion_is_one_message_and_leaves_no_store(screen, tmp_path, capsys, options, message):
    assert main(["convert", str(screen), str(tmp_path / "s.zarr"), *options]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("lazypert: error: ")
    assert message in said.err
    assert "Traceback" not in said.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [None, b"", b"not an h5ad at all", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_a_file_that_is_no_screen_is_refused(tmp_path, capsys, content):
    file = tmp_path / "bad.h5ad"
    if content is not None:
        file.write_bytes(content)
    assert main(["convert", str(file), str(tmp_path / "s.zarr"), *ROLES]) == 1
    assert capsys.readouterr().err.startswith("lazypert: error: ")
    assert {path.name for path in tmp_path.iterdir()} <= {"bad.h5ad"}


def test_an_existing_store_is_kept_unless_overwrite_is_given(screen, store, tmp_path, capsys):
    before = (store / "zarr.json").read_bytes()
    assert main(["convert", str(screen), str(store), *ALL_ROLES]) == 1
    assert "exists already" in capsys.readouterr().err
    assert (store / "zarr.json").read_bytes() == before


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "lazypert: interrupted\n"),
        (OSError(errno.ENOSPC, "No space left on device", "s.zarr"), 1, "run the same conversion again"),
    ],
    ids=["ctrl-c", "disk-full"],
)
def test_what_is_cut_off_leaves_no_store_and_is_gone_on_from(
    screen, tmp_path, capsys, monkeypatch, error, status, message
):
    def fail(*_, **__):
        raise error

    command = ["convert", str(screen), str(tmp_path / "s.zarr"), *ALL_ROLES]
    with monkeypatch.context() as patch:
        patch.setattr("lazypert.conversion.convert.write_tables", fail)  # late: the matrix is written already
        assert main(command) == status
    err = capsys.readouterr().err
    assert message in err
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith("s.zarr.partial-")
    assert kept.name in err
    assert main(command) == 0
    assert "resuming an interrupted conversion" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]
    assert main(["verify", str(tmp_path / "s.zarr")]) == 0


# -- info and verify --------------------------------------------------------------------------------


def test_info_says_what_the_screen_is(store, capsys):
    assert main(["info", str(store)]) == 0
    said = capsys.readouterr().out
    found = fields(said)
    assert found["cells"] == "900"
    assert found["genes"] == "200"
    assert found["pert_col"] == "perturbation (6 labels)"
    assert found["control_pert"] == "non-targeting (150 cells)"
    assert found["cell_type_col"] == "cell_type (3 labels)"
    assert found["batch_col"] == "batch (2 labels)"
    assert found["order"] == "grouped, shuffled within groups with seed 0"
    assert found["source"].startswith("screen.h5ad (900 cells, ")
    assert found["matrix"].startswith("X  uint16  ")
    assert "counts from 0 to " in found["matrix"]
    assert found["embedding"] == "obsm/X_pca  float32  20 wide"
    assert found["groups"] == "18, of 50 to 50 cells"
    lines = [line.split() for line in said.splitlines() if line.startswith("  ")]
    assert ["Microglia", "non-targeting", "50", "2", "control"] in lines
    assert sum(line[0] in {"Astrocyte", "Microglia", "Neuron"} for line in lines) == 18


def test_info_lists_twenty_groups_and_counts_the_rest(tmp_path, capsys):
    from lazypert.simulate import SimulationConfig, simulate_screen

    simulate_screen(tmp_path / "s.h5ad", SimulationConfig(n_cells=400, n_genes=60, n_perturbations=12))
    assert main(["convert", str(tmp_path / "s.h5ad"), str(tmp_path / "s.zarr"), *ALL_ROLES]) == 0
    capsys.readouterr()
    assert main(["info", str(tmp_path / "s.zarr")]) == 0
    said = capsys.readouterr().out
    n_groups = int(fields(said)["groups"].partition(",")[0])
    assert f"  ... and {n_groups - 20} more" in said
    assert sum(line.startswith("  ") for line in said.splitlines()) == 22


def test_verify_counts_files_or_lists_the_damage(screen, tmp_path, capsys):
    target = tmp_path / "s.zarr"
    assert main(["convert", str(screen), str(target), *ALL_ROLES]) == 0
    capsys.readouterr()
    assert main(["verify", str(target)]) == 0
    assert capsys.readouterr().out.startswith("ok: ")
    shard = target / "X" / "data" / "c" / "0"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert main(["verify", str(target)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "is damaged" in said.err
    assert "X/data/c/0: its bytes changed" in said.err


@pytest.mark.parametrize("command", ["info", "verify"])
def test_a_missing_store_is_an_error(command, tmp_path, capsys):
    assert main([command, str(tmp_path / "none.zarr")]) == 1
    assert capsys.readouterr().err.startswith("lazypert: error: There is no store at ")


# -- arguments --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("frobnicate",),
        ("convert", "a.h5ad"),
        ("convert", "a.h5ad", "b.zarr", *ROLES, "--order", "sideways"),
        ("convert", "a.h5ad", "b.zarr", *ROLES, "--seed", "-1"),
        ("demo", "--seed", "x"),
        ("demo", "--pert-col", "condition"),
        ("info",),
    ],
    ids=" ".join,
)
def test_senseless_arguments_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: lazypert" in capsys.readouterr().err


@pytest.mark.slow
def test_the_module_and_the_script_are_the_command(store):
    shown = subprocess.run([sys.executable, "-m", "lazypert", "--version"], capture_output=True, text=True, check=False)
    assert shown.returncode == 0
    assert shown.stdout.startswith("lazypert 0.")
    script = Path(sys.executable).with_name("lazypert")
    if not script.exists():
        pytest.skip("lazypert is not installed: there is no script")
    failed = subprocess.run([script, "info", store / "X"], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert failed.stderr.startswith("lazypert: error: ")
    assert failed.stderr.count("\n") == 1


@pytest.mark.slow
def test_output_into_a_closed_pipe_is_no_traceback(store):
    command = [sys.executable, "-m", "lazypert", "info", str(store)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()  # before it has written anything
        assert process.stderr.read() == ""
        assert process.wait() == 1
