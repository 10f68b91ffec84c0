"""Nobody who reads the counts of a store sees the warning that zarr 3.1 gives about their codec."""

import pickle
import subprocess
import sys
import tomllib
import warnings
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs.numcodecs import AsType
from zarr.registry import get_codec_class

import lazypert_zarr

CODEC = {"name": "numcodecs.astype", "configuration": {"encode_dtype": "<u2", "decode_dtype": "<f4"}}
ROOT = Path(__file__).parents[1]
ZARR_WARNS = tuple(map(int, zarr.__version__.split(".")[:2])) < (3, 2)


def run(code, *arguments, cwd=None):
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done


def test_the_entry_point_names_the_codec_of_this_package():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["zarr.codecs"]
    assert declared == {lazypert_zarr.NAME: "lazypert_zarr:AsType"}


def test_zarr_itself_warns_in_the_versions_that_are_treated():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        AsType.from_dict(CODEC)
    assert ["Numcodecs codecs are not in" in str(one.message) for one in caught] == [True] * ZARR_WARNS
    assert lazypert_zarr.AsType is (lazypert_zarr.QuietAsType if ZARR_WARNS else AsType)


@pytest.mark.parametrize("times", [1, 2], ids=["first", "again"])
def test_zarr_makes_the_codec_in_silence_whatever_filters_were_forgotten(times):
    for _ in range(times):
        with warnings.catch_warnings():
            warnings.resetwarnings()
            warnings.simplefilter("error")
            made = get_codec_class(CODEC["name"]).from_dict(CODEC)
    assert type(made) is AsType


def test_the_quiet_codec_equals_the_one_that_zarr_makes():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = AsType.from_dict(CODEC)
    made = lazypert_zarr.QuietAsType.from_dict(CODEC)
    assert made == expected
    assert type(made) is type(expected)
    assert made.to_dict() == expected.to_dict() == CODEC
    assert pickle.loads(pickle.dumps(made)).to_dict() == CODEC


@pytest.mark.parametrize("configuration", [None, "<u2"])
def test_metadata_without_a_configuration_are_refused(configuration):
    with pytest.raises(ValueError, match="got the configuration"):
        lazypert_zarr.QuietAsType.from_dict({"name": "numcodecs.astype", "configuration": configuration})


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


def test_a_program_that_imports_only_anndata_gets_no_warning(reference, tmp_path):
    found = [one.value for one in entry_points(group="zarr.codecs", name=lazypert_zarr.NAME)]
    if "lazypert_zarr:AsType" not in found:
        pytest.skip("lazypert was installed before it had this entry point: run pip install -e . again")
    done = run(ONLY_ANNDATA, reference.store, cwd=tmp_path)
    assert done.stdout.split() == ["float32", "False"]
    assert done.stderr == ""


@pytest.mark.slow
def test_a_program_that_uses_lazypert_gets_no_warning(reference):
    done = run(FIRST_LAZYPERT, reference.store, cwd=ROOT)
    assert done.stdout.split() == ["float32", "float32"]
    assert done.stderr == ""
