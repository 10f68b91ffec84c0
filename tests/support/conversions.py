"""Converting an odd file exactly, or refusing a broken one with one clear error and nothing left behind."""

import subprocess
import sys

import pytest

import lazypert as lp
from lazypert._cli import main
from lazypert.errors import LazypertError
from tests.support.h5files import PERTURBATION_ROLES, write_base
from tests.support.oracles import assert_equal, read_with_anndata
from tests.support.stores import leftovers, source_row


def write_changed(path, change):
    """Write a changed base file; return its path and the names of all files that were written."""
    write_base(path, change)
    return path, [other.name for other in path.parent.iterdir()]


def assert_converted(path, change, **roles):
    """The store of the changed base file holds what AnnData reads in the file, with the rows grouped by role."""
    path, written = write_changed(path, change)
    store = lp.convert(path, path.parent / "a.zarr", **roles)
    assert_equal(store, read_with_anndata(path), rows=source_row(store) if roles else None)
    assert leftovers(path.parent, *written, "a.zarr") == []


def assert_refused(path, says, capsys, *, written):
    """Both `lp.convert` and the command fail with one error that names the file, and write nothing."""
    with pytest.raises(LazypertError, match=says) as caught:
        lp.convert(path, path.parent / "a.zarr", **PERTURBATION_ROLES)
    assert repr(str(path)) in str(caught.value)
    assert len(str(caught.value)) < 1_000
    arguments = [str(path), str(path.parent / "a.zarr"), "--pert-col", "perturbation"]
    capsys.readouterr()
    assert main(["convert", *arguments]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("lazypert: error: ") == 1
    assert said.err.startswith("lazypert: error: ")
    assert "Traceback" not in said.err
    assert leftovers(path.parent, *written) == []


def run_command(path, *, first="pass"):
    """Run ``lazypert convert`` in its own process, after the statement `first`."""
    code = f"import sys; {first}; from lazypert._cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, "convert", path, path.parent / "a.zarr"],
        capture_output=True,
        text=True,
        check=False,
    )


def assert_command_refuses(path, *, written):
    """The command, in its own process, prints the error on one line and writes nothing."""
    done = run_command(path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"lazypert: error: {str(path)!r} is not a valid AnnData file at ")
    assert done.stderr.count("\n") == 1
    assert leftovers(path.parent, *written) == []
