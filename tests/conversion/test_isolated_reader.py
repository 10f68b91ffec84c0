"""Files read in a process of their own: the same store, and a clear error if that process crashes or gets stuck."""

import gc
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import lazypert as lp
from lazypert.conversion.isolated_reader import IsolatedReader, Patience, open_isolated
from lazypert.converter import open_source
from lazypert.errors import ColumnNotFoundError, MachineError, SourceFormatError, SourceMissingError
from tests.support.stores import ROLES, converted, files, leftovers, screen, write
from tests.support.wild_converter import install, write_wild

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs Linux")]
WILD = {"pert_col": "perturbation", "control_pert": "NT"}


@pytest.fixture
def wild(tmp_path, monkeypatch):
    """Write a file of the wild converter."""
    install(tmp_path / "plugin", monkeypatch)
    (tmp_path / "data").mkdir()
    return lambda behaviour="": write_wild(tmp_path / "data" / "a.wild", behaviour)


def gone(pid):
    """Whether a process ends within a few seconds."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.1)
    return False


def test_the_store_has_the_same_bytes(tmp_path):
    path, store = converted(tmp_path)
    again = lp.convert(path, tmp_path / "again.zarr", **ROLES, isolate=True)
    assert files(again) == files(store)
    two = [path, screen(30, seed=5)]
    mixed = [lp.convert(two, tmp_path / f"{isolate}.zarr", **ROLES, isolate=isolate) for isolate in (True, False)]
    assert files(mixed[0]) == files(mixed[1])


def test_isolated_readers_give_what_readers_give(tmp_path):
    path = write(screen(), tmp_path / "a.h5ad")
    own, isolated = open_source(path), IsolatedReader(path)
    for reader in (isolated, pickle.loads(pickle.dumps(isolated))):
        assert (reader.path, reader.n_obs, reader.matrices) == (own.path, own.n_obs, own.matrices)
        assert reader.elements == own.elements
        assert list(reader.obs_names(3, 9)) == list(own.obs_names(3, 9))
        assert reader.obs_column("ordered").equals(own.obs_column("ordered"))
        for spec in reader.blocks("X", 1_000):
            found, expected = reader.read_block(spec), own.read_block(spec)
            np.testing.assert_array_equal(found.csr.data, expected.csr.data)
            assert found.csr.data.flags.writeable
        with pytest.raises(ColumnNotFoundError, match="'nothing'"):
            reader.obs_column("nothing")
        assert not hasattr(reader, "no_such_method")
    with pytest.raises(SourceMissingError):
        IsolatedReader(tmp_path / "absent.h5ad")


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        ("open segv", "the structure of '.*a.wild' cannot be read: the library that reads it crashed .SIGSEGV"),
        ("obs_column abort", "obs/perturbation of '.*a.wild' cannot be read: .* crashed .SIGABRT"),
        ("obs_names exit", "the names of cells of '.*a.wild' cannot be read: .* crashed .exit status 3"),
        ("read_block segv", r"X \((0 to 12|12 to 20)\) of '.*a.wild' cannot be read: .* crashed .SIGSEGV"),
        (
            "read_block loop",
            r"X \((0 to 12|12 to 20)\) of '.*a.wild' cannot be read: .* computed for 1 s without reading",
        ),
        ("var read on", "var of '.*a.wild' cannot be read: the library that reads it read [0-9,]+ bytes of a file"),
    ],
)
def test_a_crash_or_a_loop_is_an_error_that_names_the_file(wild, monkeypatch, behaviour, says):
    monkeypatch.setattr(Patience, "CPU_SECONDS", 1.0)
    monkeypatch.setattr(Patience, "SPARE_BYTES", 1 << 30)
    path = wild(behaviour)
    with pytest.raises(SourceFormatError, match=says):
        lp.convert(path, path.with_name("a.zarr"), **WILD, isolate=True)
    assert leftovers(path.parent, path.name, "a.zarr.partial.lock") == []


def test_what_a_reader_prints_or_raises_is_passed_on(wild):
    path = wild("read_block print")
    lp.verify(lp.convert(path, path.with_name("a.zarr"), **WILD, isolate=True))
    wild("var raise")
    with pytest.raises((OSError, MachineError), match="Input/output error"):
        lp.convert(path, path.with_name("b.zarr"), **WILD, isolate=True)


def test_a_process_that_the_system_kills_is_no_fault_of_the_file(wild):
    path = wild("read_block killed")
    with pytest.raises(MachineError, match=r"ended from outside \(SIGKILL\).*may be intact.*memory_limit"):
        lp.convert(path, path.with_name("a.zarr"), **WILD, isolate=True)


def test_the_process_ends_with_its_readers(tmp_path):
    path = write(screen(lean=True), tmp_path / "a.h5ad")
    readers = open_isolated([path, path])
    pid = readers[0]._process._process.pid
    assert readers[1]._process is readers[0]._process
    assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    del readers
    gc.collect()
    assert gone(pid)


def start_looping(path):
    """Convert a file whose reader loops, in the command: the process, and that of its reader."""
    arguments = ["convert", str(path), str(path.with_name("a.zarr")), "--pert-col", "perturbation"]
    code = "import sys; from lazypert._cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    for _ in range(600):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:
            seconds = sum(map(int, Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[11:13])) / 100
            if seconds > 5 and list(path.parent.glob("a.zarr.partial-*")):
                return process, int(child)
        time.sleep(0.1)
    raise AssertionError("the reader does not loop")


def test_ctrl_c_ends_the_command_and_its_reader(wild):
    process, child = start_looping(wild("read_block loop"))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    assert gone(child)


def test_the_command_survives_a_crash(wild, capfd):
    from lazypert._cli import main

    path = wild("read_block segv")
    assert main(["convert", str(path), str(path.with_name("a.zarr")), "--pert-col", "perturbation"]) == 1
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.count("lazypert: error: ") == 1
    assert "crashed (SIGSEGV)" in said.err
    assert "Traceback" not in said.err
