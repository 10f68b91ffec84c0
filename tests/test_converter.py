"""Source files are recognised by content, unknown formats are described, and third-party converters work."""

import gzip
import json
import os
import pickle
import subprocess
import sys
from textwrap import dedent

import h5py
import numpy as np
import pytest

from lazypert.converter import Converter, converters, open_source
from lazypert.errors import LazypertError, SourceFormatError
from tests.support.stores import read_store, screen, write


def test_installed_converters_are_listed_by_name():
    known = converters()
    assert "h5ad" in known
    assert all(isinstance(converter, Converter) for converter in known.values())
    assert all(name == converter.name for name, converter in known.items())


def test_a_file_is_recognised_by_content_rather_than_name(tmp_path):
    path = write(screen(), tmp_path / "screen.h5ad").rename(tmp_path / "screen.data")
    reader = open_source(str(path))
    assert (reader.n_obs, reader.n_vars) == (90, 17)
    assert pickle.loads(pickle.dumps(reader)) == reader


@pytest.fixture
def good(tmp_path):
    return write(screen(), tmp_path / "good.h5ad").read_bytes()


def hdf5_without_obs(path):
    with h5py.File(path, "w") as file:
        file["x"] = [1, 2]


TEXT_SAYS = "has an unknown format: it starts with the bytes b'gene,cel', expected one of: 10x_h5, "
CUT_SHORT = "cut short, incomplete or damaged"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(
            lambda p, _: p.write_text("gene,cell\n1,2\n"),
            "unknown format: it starts with the bytes b'gene,cel', expected one of: 10x_h5, ",
            id="text",
        ),
        pytest.param(lambda p, good: p.write_bytes(gzip.compress(good)), "it is gzip-compressed", id="gzip"),
        pytest.param(lambda p, _: p.write_bytes(b""), r"it is empty \(0 bytes\)", id="empty"),
        pytest.param(lambda p, good: p.write_bytes(good[: len(good) // 2]), CUT_SHORT, id="truncated"),
        pytest.param(lambda p, good: p.write_bytes(good[:12]), CUT_SHORT, id="signature_only"),
        pytest.param(lambda p, _: p.mkdir(), "it is a folder", id="folder"),
        pytest.param(lambda p, _: p.write_text("<!DOCTYPE html><html>"), "it is a web page or XML", id="web_page"),
        pytest.param(lambda p, _: p.write_bytes(b"PK\x03\x04rest"), "it is a zip archive", id="zip"),
        pytest.param(lambda p, _: hdf5_without_obs(p), "'obs': it is missing", id="other_hdf5"),
    ],
)
def test_the_error_for_an_unknown_format_describes_the_file(tmp_path, good, make, says):
    path = tmp_path / "bad.h5ad"
    make(path, good)
    with pytest.raises(SourceFormatError, match=says) as caught:
        open_source(path)
    assert repr(str(path)) in str(caught.value)


def test_a_missing_file_is_also_a_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.h5ad' does not exist") as caught:
        open_source(tmp_path / "nothing.h5ad")
    assert isinstance(caught.value, LazypertError)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root can read every file")
def test_an_unreadable_file_is_a_source_format_error(tmp_path):
    path = write(screen(lean=True), tmp_path / "a.h5ad")
    path.chmod(0)
    with pytest.raises(SourceFormatError, match=r"cannot be read \(Permission denied\)"):
        open_source(path)


THIRD_PARTY = '''
"""Converter of a made-up format: the number of cells and genes, then one "cell gene value" per line."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
{imports}


class TripletConverter:
    name = "triplets"

    def recognises(self, path):
        return path.is_file() and path.read_bytes().startswith(b"TRIPLETS")

    def open(self, path):
        _, n_obs, n_vars = path.read_text().splitlines()[0].split()
        return TripletReader(
            path=path, n_obs=int(n_obs), n_vars=int(n_vars), obs_columns=("guide",),
            matrices={{"X": int(n_vars)}}, obsm={{}}, not_carried=(),
        )


@dataclass(frozen=True)
class TripletReader:
    path: Path
    n_obs: int
    n_vars: int
    obs_columns: tuple
    matrices: dict
    obsm: dict
    not_carried: tuple

    def obs_names(self, start=0, stop=None):
        return np.array([f"cell{{i}}" for i in range(self.n_obs)], dtype=object)[start:stop]

    def obs_column(self, name, start=0, stop=None):
        return pd.Categorical(["A" if i % 2 else "control" for i in range(self.n_obs)])[start:stop]

    def var(self):
        return pd.DataFrame(index=[f"gene{{j}}" for j in range(self.n_vars)])

    def raw_var(self):
        raise NotImplementedError

    def nnz(self, matrix):
        return None

    def scratch_bytes(self, matrix):
        return 0

    def blocks(self, matrix, max_bytes):
        return [BlockSpec(matrix, row, row + 1) for row in range(self.n_obs)]

    def read_block(self, spec):
        lines = (line.split() for line in self.path.read_text().splitlines()[1:])
        found = [(int(gene), int(value)) for cell, gene, value in lines if int(cell) == spec.start]
        genes, values = (np.array([pair[k] for pair in found], "i4") for k in (0, 1))
        return RowBlock(spec.start, CSRBlock(np.array([0, len(found)]), genes, values, self.n_vars))

    def read_obsm(self, name, start, stop):
        raise NotImplementedError
'''

IMPORTS = {
    "version_0_1": "from lazypert.csr import CSRBlock\nfrom lazypert.converter import BlockSpec, RowBlock",
    "current": "from lazypert.converter import BlockSpec, CSRBlock, RowBlock",
}
WARNINGS = {
    "version_0_1": [
        ["DeprecationWarning", "lazypert.csr is deprecated: import CSRBlock from lazypert.converter instead."]
    ],
    "current": [],
}
CONVERT = """
    import json, sys, warnings
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import lazypert as lp
        lp.convert(sys.argv[1], sys.argv[2], pert_col="guide", control_pert="control")
    print(json.dumps([[warning.category.__name__, str(warning.message)] for warning in caught]))
"""


def install(folder, imports):
    """Write a package with an entry point, as pip would install it."""
    folder.mkdir()
    (folder / "triplets.py").write_text(THIRD_PARTY.format(imports=imports))
    info = folder / "triplets-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: triplets\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lazypert.converters]\ntriplets = triplets:TripletConverter\n")


@pytest.mark.parametrize("version", [pytest.param("version_0_1", marks=pytest.mark.slow), "current"])
def test_a_third_party_converter_works_unchanged(tmp_path, version):
    install(tmp_path / "site", IMPORTS[version])
    (tmp_path / "screen.txt").write_text("TRIPLETS 4 3\n0 2 5\n1 0 1\n1 1 2\n3 2 300\n")
    done = subprocess.run(
        [sys.executable, "-c", dedent(CONVERT), tmp_path / "screen.txt", tmp_path / "screen.zarr"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads(done.stdout) == WARNINGS[version]
    store = read_store(tmp_path / "screen.zarr")
    rows = [int(name.removeprefix("cell")) for name in store.obs_names]
    assert sorted(rows) == [0, 1, 2, 3]
    expected = np.array([[0, 0, 5], [1, 2, 0], [0, 0, 0], [0, 0, 300]])
    np.testing.assert_array_equal(store.X.toarray(), expected[rows])
    assert list(store.obs["guide"]) == ["A" if row % 2 else "control" for row in rows]
    assert list(store.var_names) == ["gene0", "gene1", "gene2"]
