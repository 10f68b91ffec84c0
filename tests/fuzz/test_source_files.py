"""Mutants of source files are refused with an error of lazypert, or read exactly; see README.md here."""

import subprocess
import sys

import pytest

import lazypert as lp
from lazypert.conversion.isolated_reader import Patience
from lazypert.errors import LazypertError
from tests.fuzz.bases import BASES
from tests.fuzz.source_files import EXPECTED, make_mutant, outcome, run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")]
MUTANTS = 8  # of each base; run more with python -m tests.fuzz.source_files


@pytest.fixture(params=BASES)
def base(request, tmp_path):
    """Name of a base, and its valid file."""
    original = tmp_path / BASES[request.param].name
    BASES[request.param].write(original)
    return request.param, original


def test_the_valid_file_is_read_exactly(base, tmp_path):
    (tmp_path / "own").mkdir()
    name, original = base
    path = original.rename(tmp_path / "own" / original.name)
    assert outcome(name, path, path) == ("exact", "")


def test_mutants_are_refused_or_read_exactly(base, tmp_path):
    name, original = base
    for record in run(name, range(MUTANTS), original):
        seed, end = record["seed"], record["outcome"]
        assert end in (*EXPECTED, "not made"), record
        if end in ("crashed", "stuck"):
            (tmp_path / str(seed)).mkdir()
            path, _ = make_mutant(name, seed, tmp_path / str(seed), original)
            with pytest.raises(LazypertError):
                lp.convert(path, tmp_path / f"{seed}.zarr", **BASES[name].roles, isolate=True)


def test_an_endless_loop_of_hdf5_is_met_by_an_isolated_reader(tmp_path, monkeypatch):
    """Some versions of HDF5 read an attribute of this file for ever; others refuse the file, or read it."""
    monkeypatch.setattr(Patience, "CPU_SECONDS", 5.0)
    original = tmp_path / "screen.h5ad"
    BASES["raw"].write(original)
    (tmp_path / "mutant").mkdir()
    path, _ = make_mutant("raw", 47, tmp_path / "mutant", original)
    assert outcome("raw", path, original, isolate=True)[0] in ("refused", "exact", "original")


def test_broken_links_in_any_place_are_refused(tmp_path):
    """Objects whose headers are overwritten raise many kinds of error, wherever they are first looked at."""
    original = tmp_path / "screen.h5ad"
    BASES["csr"].write(original)
    data, ends = original.read_bytes(), {}
    for name in (b"obs\0", b"var\0", b"X\0", b"TREE", b"SNOD", b"HEAP"):
        at = data.find(name)
        assert at >= 0
        folder = tmp_path / name.decode().strip("\0")
        folder.mkdir()
        path = folder / original.name
        path.write_bytes(data[:at] + b"\xff" * len(name) + data[at + len(name) :])
        ends[name] = outcome("csr", path, original)[0]
    assert set(ends.values()) <= {"refused", "exact", "original"}
    assert {name for name, end in ends.items() if end == "refused"} >= {b"obs\0", b"var\0", b"TREE", b"SNOD"}


def test_a_mutant_can_be_made_again_by_its_seed(tmp_path):
    command = [sys.executable, "-m", "tests.fuzz.source_files", "csr", "7", "--keep", str(tmp_path / "m.h5ad")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    BASES["csr"].write(tmp_path / "screen.h5ad")
    (tmp_path / "again").mkdir()
    _, again = make_mutant("csr", 7, tmp_path / "again", tmp_path / "screen.h5ad")
    assert said.strip() == again
