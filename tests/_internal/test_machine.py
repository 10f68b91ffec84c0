"""Errors of the machine are told apart from damaged files, also by the readers of sources and stores."""

import errno
import os
import subprocess
import sys

import h5py
import pytest

import lazypert as lp
from lazypert._internal.machine import raise_machine_error
from lazypert.converter import open_source
from lazypert.errors import LazypertError, MachineError
from tests.support.stores import ROLES, screen, write


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.EMFILE, "ulimit -n"),
        (errno.ENFILE, "ulimit -n"),
        (errno.EAGAIN, "locked"),
        (errno.ENOMEM, "memory_limit"),
        (errno.EACCES, "permissions"),
        (errno.EIO, "disk or the network"),
    ],
)
def test_errors_of_the_machine(code, advice):
    in_text = OSError(f"Can't read data (file read failed: errno = {code}, error message = '{os.strerror(code)}')")
    wrapped = RuntimeError("a library failed")
    wrapped.__cause__ = OSError(code, os.strerror(code))
    for error in (OSError(code, os.strerror(code)), in_text, wrapped):
        with pytest.raises(
            MachineError, match=rf"'a\.h5ad' cannot be read now .*not mean that it is damaged.*{advice}"
        ):
            raise_machine_error("a.h5ad", error)


def test_other_errors_are_those_of_the_file():
    for error in (
        OSError("file signature not found"),
        OSError(errno.ENOENT, "none"),
        ValueError("errno = 5"),
        EOFError(),
    ):
        raise_machine_error("a.h5ad", error)


def test_a_lack_of_memory_stays_one():
    wrapped = ValueError("cannot decode")
    wrapped.__cause__ = MemoryError("16 GiB")
    for error in (MemoryError("16 GiB"), wrapped):
        with pytest.raises(MemoryError, match="16 GiB"):
            raise_machine_error("a.h5ad", error)


SCRIPT = """
import os, resource, sys
import lazypert as lp
from lazypert.converter import converters, open_source
from lazypert.errors import LazypertError
from lazypert.store.store import Store
path, store = sys.argv[1:]
calls = {
    "source": lambda: open_source(path),
    "convert": lambda: lp.convert(path, path + ".zarr", pert_col="perturbation", progress=False),
    "store": lambda: Store(store),
}
for call in (calls["source"], calls["store"]):
    call()  # loads modules
opened = Store(store)
calls["obsm"] = lambda: {name: array[:] for name, array in opened.obsm.items()}
calls["strings"] = lambda: opened.read_strings("obs/_index")
calls["obsm"](), calls["strings"](), opened.groups
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
for spare in range(4):
    held = []
    try:
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    for fd in held[:spare]:
        os.close(fd)
    for name, call in calls.items():
        try:
            call()
        except Exception as error:
            print(spare, name, type(error).__name__, isinstance(error, OSError), str(error).replace("\\n", " "))
    for fd in held[spare:]:
        os.close(fd)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs resource limits")
def test_too_many_open_files_are_not_damage(tmp_path):
    path = tmp_path / "s.h5ad"
    write(screen(), path)
    store = lp.convert(path, tmp_path / "s.zarr", progress=False, **ROLES)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), str(store)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {line.split()[1] for line in done.stdout.splitlines()} >= {"source", "store", "convert"}, done.stdout
    for line in done.stdout.splitlines():
        assert "SourceFormatError" not in line, line
        assert "StoreDamagedError" not in line, line
        assert "Too many open files" in line, line
        assert line.split()[3] == "True", line


def test_a_file_that_is_being_written_is_locked(tmp_path):
    path = tmp_path / "s.h5ad"
    write(screen(), path)
    script = "import h5py, sys; file = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); sys.stdin.read()"
    writer = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert writer.stdout.readline() == "open\n"
        with pytest.raises(LazypertError) as raised:
            open_source(path)
    finally:
        writer.communicate("")
    assert isinstance(raised.value, MachineError)
    assert "has locked it" in str(raised.value)
    assert open_source(path).n_obs == 90


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), MemoryError("no memory")], ids=["EIO", "memory"]
)
def test_reads_that_the_machine_fails(tmp_path, monkeypatch, error):
    path = tmp_path / "s.h5ad"
    write(screen(), path)

    def fail(*_, **__):
        raise error

    expected = MachineError if isinstance(error, OSError) else MemoryError
    monkeypatch.setattr(h5py.Dataset, "__getitem__", fail)
    monkeypatch.setattr("lazypert_converters._hdf5.read_slices", fail)
    with pytest.raises(expected):
        lp.convert(path, tmp_path / "t.zarr", progress=False, **ROLES)
