import subprocess
import sys
from pathlib import Path

import pytest

from lazypert._cli import main
from tests.support.cli import ROLES


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
def test_invalid_arguments_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: lazypert" in capsys.readouterr().err


@pytest.mark.slow
def test_the_module_and_the_script_run_the_command_line(store):
    shown = subprocess.run([sys.executable, "-m", "lazypert", "--version"], capture_output=True, text=True, check=False)
    assert shown.returncode == 0
    assert shown.stdout.startswith("lazypert 0.")
    script = Path(sys.executable).with_name("lazypert")
    if not script.exists():
        pytest.skip("lazypert is not installed, so the script does not exist")
    failed = subprocess.run([script, "info", store / "X"], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert failed.stderr.startswith("lazypert: error: ")
    assert failed.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_closed_pipe_causes_no_traceback(store):
    command = [sys.executable, "-m", "lazypert", "info", str(store)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()  # before the process writes
        assert process.stderr.read() == ""
        assert process.wait() == 1
