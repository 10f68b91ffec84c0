"""Published files, written by many tools since AnnData 0.5, are converted exactly.

The oracle is the latest AnnData or scanpy. The files are not part of the repository: without their folder
(see `tests.support.data`) these tests are skipped, and the other modules here cover every encoding.
"""

import time
import warnings

import pytest
import scanpy

import lazypert as lp
from lazypert.errors import LazypertError
from lazypert.store.store import Store
from tests.support.data import DATA
from tests.support.oracles import assert_equal, read_with_anndata
from tests.support.stores import (
    leftovers,
)

ENCODINGS = DATA / "encodings"
READ = (".h5ad", ".h5", ".zarr.zip", "_mtx")
FILES = sorted(path for path in ENCODINGS.glob("*") if path.name.endswith(READ))

NO_X = "has no X. Name a layer to use instead .* There are none"
REFUSED = {
    "anndata_v0.11.4_adata.h5ad": NO_X,
    "anndata_v0.11.4_adata.zarr.zip": NO_X,
    "soma_x-none.h5ad": NO_X,
    "10x_v2_multiple_genomes.h5": "has the matrices of 2 genomes",
    "scvi_brain_large_10xv2.h5": "'mm10/barcodes': it is missing",
    "scvi_genomics_10x.h5": r"'mm10/shape': it says .* \(genes, cells\), expected \[1, 1\]",
}


def oracle(path):
    if path.name.endswith((".h5ad", ".zarr.zip")):
        return read_with_anndata(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if path.is_dir():
            return scanpy.read_10x_mtx(path, make_unique=False)
        return scanpy.read_10x_h5(path, gex_only=False)


def describe(path, source, outcome, seconds):
    return f"{path.name:<48} {source.n_obs:>7,} x {source.n_vars:<7,} {kind(source.X):<24} {outcome} ({seconds:.2f} s)"


def kind(matrix):
    return "none" if matrix is None else f"{type(matrix).__name__} {matrix.dtype}"


@pytest.mark.skipif(not FILES, reason="no published files: set LAZYPERT_DATA")
@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_published_files_are_converted_exactly_or_refused_for_a_reason(tmp_path, record_property, path):
    out, start = tmp_path / "a.zarr", time.perf_counter()
    if path.name in REFUSED:
        with pytest.raises(LazypertError, match=REFUSED[path.name]) as caught:
            lp.convert(path, out)
        assert repr(str(path)) in str(caught.value)
        assert leftovers(tmp_path) == []
        record_property("table", f"{path.name:<48} refused: {str(caught.value).replace(repr(str(path)), 'it')[:150]}")
        return
    lp.convert(path, out)
    seconds = time.perf_counter() - start
    source = oracle(path)
    assert_equal(out, source)
    assert leftovers(tmp_path, "a.zarr") == []
    record_property("table", describe(path, source, f"exact, {len(Store(out).attrs['warnings'])} warnings", seconds))


@pytest.mark.skipif(not FILES, reason="no published files: set LAZYPERT_DATA")
def test_every_refused_file_exists():
    assert {path.name for path in FILES} >= set(REFUSED)
