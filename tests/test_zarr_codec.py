"""Nobody who reads the matrices of a store sees the warning that zarr 3.1 gives about their codecs."""

import os
import pickle
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs.numcodecs import AsType, Delta
from zarr.registry import get_codec_class

import lazypert as lp
import lazypert_zarr

CODEC = {"name": "numcodecs.astype", "configuration": {"encode_dtype": "<u2", "decode_dtype": "<f4"}}
DELTA = {"name": "numcodecs.delta", "configuration": {"dtype": "<u2", "astype": "<u2"}}
CODECS = pytest.mark.parametrize(
    ("metadata", "theirs", "ours", "quiet"),
    [(CODEC, AsType, lazypert_zarr.AsType, lazypert_zarr.QuietAsType),
     (DELTA, Delta, lazypert_zarr.Delta, lazypert_zarr.QuietDelta)],
    ids=["astype", "delta"],
)  # fmt: skip
ROOT = Path(__file__).parents[1]
ZARR_WARNS = tuple(map(int, zarr.__version__.split(".")[:2])) < (3, 2)


def run(code, *arguments, cwd=None, paths=None):
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    env = None if paths is None else {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr
    return done


def test_the_entry_point_names_the_codec_of_this_package():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["zarr.codecs"]
    assert declared == {lazypert_zarr.ASTYPE: "lazypert_zarr:AsType", lazypert_zarr.DELTA: "lazypert_zarr:Delta"}


@CODECS
def test_zarr_itself_warns_in_the_versions_that_are_treated(metadata, theirs, ours, quiet):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        theirs.from_dict(metadata)
    assert ["Numcodecs codecs are not in" in str(one.message) for one in caught] == [True] * ZARR_WARNS
    assert ours is (quiet if ZARR_WARNS else theirs)


@CODECS
@pytest.mark.parametrize("times", [1, 2], ids=["first", "again"])
def test_zarr_makes_the_codec_in_silence_whatever_filters_were_forgotten(times, metadata, theirs, ours, quiet):
    for _ in range(times):
        with warnings.catch_warnings():
            warnings.resetwarnings()
            warnings.simplefilter("error")
            made = get_codec_class(metadata["name"]).from_dict(metadata)
    assert type(made) is theirs


@CODECS
def test_the_quiet_codec_equals_the_one_that_zarr_makes(metadata, theirs, ours, quiet):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = theirs.from_dict(metadata)
    made = quiet.from_dict(metadata)
    assert made == expected
    assert type(made) is type(expected)
    assert made.to_dict() == expected.to_dict() == metadata
    assert pickle.loads(pickle.dumps(made)).to_dict() == metadata


@CODECS
@pytest.mark.parametrize("configuration", [None, "<u2"])
def test_metadata_without_a_configuration_are_refused(configuration, metadata, theirs, ours, quiet):
    with pytest.raises(ValueError, match="got the configuration"):
        quiet.from_dict({**metadata, "configuration": configuration})


def test_the_codec_converts_in_both_directions(tmp_path):
    values = np.array([0, 1, 65_535, 7], "f4")
    codec = lazypert_zarr.AsType.from_dict(CODEC)
    zarr.create_array(tmp_path / "a", shape=4, chunks=2, dtype="f4", filters=[codec], compressors=None)[:] = values
    assert (tmp_path / "a" / "c" / "1").read_bytes() == np.array([65_535, 7], "<u2").tobytes()
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a", mode="r")[:], values)


def test_importing_the_package_loads_nothing_but_zarr():
    code = "import sys, zarr; before = set(sys.modules); import lazypert_zarr; print(*(set(sys.modules) - before))"
    assert run(code, cwd=ROOT).stdout.split() == ["lazypert_zarr"]


ONLY_ANNDATA = """
import sys, warnings
import anndata
adata = anndata.read_zarr(sys.argv[1])
with warnings.catch_warnings():
    warnings.simplefilter("error")
    anndata.experimental.read_lazy(sys.argv[1]).X[:5].compute()
print(adata.X.dtype, "lazypert" in sys.modules)
"""

FIRST_LAZYPERT = """
import sys
import lazypert as lp
lp.verify(sys.argv[1])
x = lp.open(sys.argv[1]).X[:5].compute()
import anndata
print(anndata.read_zarr(sys.argv[1]).X.dtype, x.dtype)
"""


@pytest.fixture
def installed(tmp_path):
    """Paths on which this version of `lazypert_zarr` is installed with its entry points, whatever else is."""
    metadata = tmp_path / "site" / "lazypert-999.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lazypert\nVersion: 999\n")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["zarr.codecs"]
    lines = [f"{name} = {value}" for name, value in declared.items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[zarr.codecs]", *lines]))
    return tmp_path / "site", ROOT / "converters"


@pytest.mark.parametrize("compression", ["fast", "compact"])
def test_a_program_that_imports_only_anndata_gets_no_warning(reference, installed, tmp_path, compression):
    store = lp.convert(reference.path, tmp_path / "s.zarr", compression=compression)
    done = run(ONLY_ANNDATA, store, cwd=tmp_path, paths=installed)
    assert done.stdout.split() == ["float32", "False"]
    assert done.stderr == ""


@pytest.mark.slow
def test_a_program_that_uses_lazypert_gets_no_warning(reference):
    done = run(FIRST_LAZYPERT, reference.store, cwd=ROOT)
    assert done.stdout.split() == ["float32", "float32"]
    assert done.stderr == ""
