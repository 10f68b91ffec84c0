"""10x .h5 files: stores hold what scanpy reads in them, and invalid files are refused."""

import pickle
import warnings

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy

import lazypert as lp
from lazypert.converter import converters, open_source
from lazypert.errors import ColumnNotFoundError, SourceFormatError
from tests.support.data import require_data
from tests.support.mtx import assert_same_as_scanpy
from tests.support.stores import counts, leftovers, read_store, small_blocks, small_grids, source_row

pytestmark = pytest.mark.slow  # compiles kernels; CI runs them

GENES = ["TP53", "KRAS", "BRCA1", "MYC", "EGFR", "sgTP53", "GAPDH"]


def names(prefix, n):
    return np.array([f"{prefix}{i}" for i in range(n)], dtype="S")


def fill(group, matrix, dtype="i4"):
    n_obs, n_vars = matrix.shape
    group["barcodes"] = names("CELL-", n_obs)
    group["data"] = matrix.data.astype(dtype)
    group["indices"], group["indptr"] = matrix.indices.astype("i8"), matrix.indptr.astype("i8")
    group["shape"] = np.array([n_vars, n_obs], dtype="i4")
    return n_vars


def v2(path, matrix=None, genome="GRCh38", dtype="i4"):
    with h5py.File(path, "a") as file:
        group = file.create_group(genome)
        n_vars = fill(group, counts(30, 7) if matrix is None else matrix, dtype)
        group["genes"] = names("ENSG", n_vars)
        group["gene_names"] = np.array([g.encode() for g in GENES])[:n_vars]
    return path


def v3(path, matrix=None, dtype="i4", probes=False, genes=GENES, guides=0):
    with h5py.File(path, "w") as file:
        file.attrs["filetype"] = "matrix"
        group = file.create_group("matrix")
        n_vars = fill(group, counts(30, 7) if matrix is None else matrix, dtype)
        features = group.create_group("features")
        features["_all_tag_keys"] = np.array([b"genome"])
        features["feature_type"] = np.array(
            [b"Gene Expression"] * (n_vars - guides) + [b"CRISPR Guide Capture"] * guides
        )
        features["genome"] = np.array([b"GRCh38"] * n_vars)
        features["id"] = names("ENSG", n_vars)
        features["name"] = np.array([g.encode() for g in genes])[:n_vars]
        if probes:
            features["gene_id"], features["gene_name"] = names("G", n_vars), names("N", n_vars)
            features["filtered_probes"] = np.arange(n_vars) % 2 == 0
            features["number"] = np.arange(n_vars)
            group["filtered_barcodes"] = np.arange(30) % 3 == 0
    return path


def as_scanpy(path, *, gex_only=True):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return scanpy.read_10x_h5(path, gex_only=gex_only)


MAKERS = {
    "v2": v2,
    "v3": v3,
    "v3_guides": lambda path: v3(path, guides=2),
    "v3_probes": lambda path: v3(path, probes=True),
    "v3_repeated_names": lambda path: v3(path, genes=["TP53", *GENES[:2], *GENES[3:], "TP53"]),
    "v3_reals": lambda path: v3(path, counts(30, 7) * 0.3, dtype="f8"),
    "v3_int64": lambda path: v3(path, counts(30, 7), dtype="i8"),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_stores_equal_what_scanpy_reads(tmp_path, monkeypatch, kind):
    small_grids(monkeypatch)
    small_blocks(monkeypatch, 300)
    path = MAKERS[kind](tmp_path / "a.h5")
    store = lp.convert(path, tmp_path / "a.zarr")
    assert_same_as_scanpy(store, as_scanpy(path))
    assert leftovers(tmp_path, "a.h5", "a.zarr") == []


def test_grouped_rows_map_back_to_the_file(tmp_path):
    path = v3(tmp_path / "a.h5", probes=True)
    store = lp.convert(path, tmp_path / "a.zarr", batch_col="filtered_barcodes")
    assert source_row(store).tolist() != list(range(30))
    assert_same_as_scanpy(store, as_scanpy(path))


PUBLISHED = {
    "10x_v2_filtered_gene_bc_matrices_h5.h5": (12, 343),
    "10x_v3_filtered_feature_bc_matrix.h5": (1107, 507),
    "10x_visium_2.1.0_raw_probe_bc_matrix.h5": (4987, 1000),
    "10x_visium_filtered_feature_bc_matrix.h5": (100, 100),
    "soma_visium_filtered_feature_bc_matrix.h5": (2695, 100),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_stores_of_published_files_equal_what_scanpy_reads(tmp_path, name):
    path = require_data("encodings", name)
    store = lp.convert(path, tmp_path / "a.zarr")
    source = as_scanpy(path)
    assert source.shape == PUBLISHED[name]
    assert_same_as_scanpy(store, source)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("10x_v2_multiple_genomes.h5", r"2 genomes, 'another_genome', 'hg19_chr21'.*genome='another_genome'"),
        ("scvi_brain_large_10xv2.h5", r"'mm10/barcodes'.*is missing"),
        ("scvi_genomics_10x.h5", r"'mm10/shape'.*\[\d+, 8\].*expected \[1, 1\]"),
    ],
)
def test_invalid_published_files_are_refused(tmp_path, name, says):
    with pytest.raises(SourceFormatError, match=says):
        lp.convert(require_data("encodings", name), tmp_path / "a.zarr")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("size", [1, 100, 10**9])
def test_blocks_cover_the_matrix_and_respect_the_size_limit(tmp_path, size):
    matrix = counts(30, 7)
    reader = open_source(v3(tmp_path / "a.h5", matrix))
    blocks = reader.blocks("X", size)
    assert [b.start for b in blocks] == [0, *(b.stop for b in blocks[:-1])]
    assert blocks[-1].stop == 30
    for spec in blocks:
        block = reader.read_block(spec)
        np.testing.assert_array_equal(block.csr.to_dense(), matrix[spec.start : spec.stop].toarray())
        assert block.csr.nnz * 12 <= size or np.count_nonzero(np.diff(block.csr.indptr)) == 1
    assert (len(blocks) == 1) == (size == 10**9)


def test_readers_are_picklable_and_have_no_obs_columns(tmp_path):
    reader = open_source(v2(tmp_path / "a.h5"))
    assert pickle.loads(pickle.dumps(reader)) == reader
    assert reader.obs_columns == ()
    for read in (lambda: reader.obs_column("x"), lambda: reader.read_obsm("X_pca", 0, 1)):
        with pytest.raises(ColumnNotFoundError, match=r"got '(x|X_pca)', expected an .* of .*a\.h5'"):
            read()
    with pytest.raises(ColumnNotFoundError, match=r"pert_col: got 'guide'.*There are none"):
        lp.convert(reader.path, tmp_path / "a.zarr", pert_col="guide")
    assert leftovers(tmp_path, "a.h5") == []


def test_ranges_of_names_and_columns_equal_slices_of_all(tmp_path):
    reader = open_source(v3(tmp_path / "a.h5", probes=True))
    names, column = list(reader.obs_names()), list(reader.obs_column("filtered_barcodes"))
    assert [*reader.obs_names(0, 11), *reader.obs_names(11)] == names
    assert [*reader.obs_column("filtered_barcodes", 0, 11), *reader.obs_column("filtered_barcodes", 11)] == column
    assert reader.obs_column("filtered_barcodes", 2, 4).dtype == bool
    assert reader.scratch_bytes("X") == 0  # contiguous


def test_unsorted_and_repeated_indices_are_sorted_and_summed(tmp_path):
    matrix = counts(2, 4)
    matrix.data = np.array([1, 2, 3, 4, 5], dtype="i4")
    matrix.indices, matrix.indptr = np.array([3, 0, 3, 2, 2], dtype="i4"), np.array([0, 3, 5], dtype="i4")
    found = read_store(lp.convert(v3(tmp_path / "a.h5", matrix), tmp_path / "a.zarr"))
    assert found.X.toarray().tolist() == [[2, 0, 0, 4], [0, 0, 9, 0]]
    assert found.X.has_canonical_format


def test_counts_that_float32_would_round_stay_exact(tmp_path):
    matrix = counts(1, 2, dtype="i8", density=1.0)
    matrix = type(matrix)(([2**24 + 1, 2**31 - 1], [0, 1], [0, 2]), shape=(1, 2))
    found = read_store(lp.convert(v3(tmp_path / "a.h5", matrix), tmp_path / "a.zarr"))
    assert found.X.toarray().tolist() == [[2**24 + 1, 2**31 - 1]]


def test_names_are_utf8_in_fixed_and_variable_length_text(tmp_path):
    genes = ["é漢", "β-actin", *GENES[2:]]
    path = v3(tmp_path / "a.h5", genes=genes)
    reader = open_source(path)
    assert list(reader.var().index) == genes
    with h5py.File(path, "r+") as file:
        del file["matrix/features/name"]
        file["matrix/features/name"] = genes  # of variable length, as pandas and SOMA write them
    pd.testing.assert_frame_equal(open_source(path).var(), reader.var())


@pytest.mark.parametrize("shape", [(1, 3), (0, 3)], ids=str)
def test_tiny_files_are_converted(tmp_path, shape):
    found = read_store(lp.convert(v3(tmp_path / "a.h5", counts(*shape)), tmp_path / "a.zarr"))
    assert found.shape == shape


def rewritten(where, change):
    def apply(file):
        values = file[where][:]
        del file[where]
        file[where] = change(values)

    return apply


def put(index, value):
    def change(values):
        values[index] = value
        return values

    return change


def without(where):
    return lambda file: file.pop(where)


def virtual_data(file):
    layout = h5py.VirtualLayout(shape=file["matrix/data"].shape, dtype="i4")
    layout[:] = h5py.VirtualSource("gone.h5", "data", shape=file["matrix/data"].shape)
    del file["matrix/data"]
    file.create_virtual_dataset("matrix/data", layout)


BAD = {
    "negative_index": (rewritten("matrix/indices", put(3, -1)), "matrix/indices.*holds -1 at element 3"),
    "large_index": (rewritten("matrix/indices", put(5, 7)), "matrix/indices.*holds 7 at element 5.*from 0 to 6"),
    "huge_index": (rewritten("matrix/indices", put(5, 2**32)), "matrix/indices.*holds 4294967296 at element 5"),
    "indptr_decreases": (rewritten("matrix/indptr", put(4, 10**4)), "matrix/indptr.*decreases at element 5"),
    "indptr_starts_late": (rewritten("matrix/indptr", put(0, 1)), "matrix/indptr.*starts at 1"),
    "indptr_ends_early": (rewritten("matrix/indptr", lambda v: put(-1, v[-2])(v)), "matrix/indptr.*ends at"),
    "indptr_short": (rewritten("matrix/indptr", lambda v: v[:-1]), "matrix/indptr.*has 30 elements, expected 31"),
    "data_short": (rewritten("matrix/data", lambda v: v[:-1]), "matrix/indices.*as many as data"),
    "data_text": (rewritten("matrix/data", lambda v: v.astype("S")), "matrix/data.*dtype.*expected numbers"),
    "indices_reals": (rewritten("matrix/indices", lambda v: v.astype("f8")), "matrix/indices.*float64.*integers"),
    "shape_swapped": (rewritten("matrix/shape", lambda v: v[::-1]), r"matrix/shape.*\[30, 7\].*expected \[7, 30\]"),
    "barcodes_short": (rewritten("matrix/barcodes", lambda v: v[:-1]), r"matrix/shape.*expected \[7, 29\]"),
    "genome_short": (rewritten("matrix/features/genome", lambda v: v[:-1]), "features/genome.*has 6 elements"),
    "no_features": (without("matrix/features"), "matrix/features/id.*is missing"),
    "no_barcodes": (without("matrix/barcodes"), "matrix/barcodes.*is missing"),
    "no_names": (without("matrix/features/name"), "matrix/features/name.*is missing"),
    "no_data": (without("matrix/data"), "matrix/data.*is missing"),
    "not_utf8": (rewritten("matrix/barcodes", put(2, b"\xff\xfe")), "matrix/barcodes.*not UTF-8"),
    "table": (rewritten("matrix/data", lambda v: v[None]), "matrix/data.*expected an array of one dimension"),
    "virtual": (virtual_data, r"matrix/data.*is a virtual dataset.*gone\.h5"),
}


@pytest.mark.parametrize("kind", BAD)
def test_invalid_files_are_refused_and_leave_no_store(tmp_path, kind):
    change, says = BAD[kind]
    path = v3(tmp_path / "bad.h5")
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(SourceFormatError, match=says) as caught:
        lp.convert(path, tmp_path / "a.zarr")
    assert repr(str(path)) in str(caught.value)
    assert leftovers(tmp_path, "bad.h5") == []


def test_damaged_chunks_are_refused(tmp_path):
    path = v3(tmp_path / "bad.h5")
    with h5py.File(path, "r+") as file:
        values = file["matrix/data"][:]
        del file["matrix/data"]
        node = file.create_dataset("matrix/data", data=values, chunks=(len(values),), compression="gzip")
        where = node.id.get_chunk_info(0)
    with path.open("r+b") as raw:
        raw.seek(where.byte_offset + 4)
        raw.write(b"\0" * 8)
    with pytest.raises(SourceFormatError, match=r"matrix/data.*cannot be read"):
        lp.convert(path, tmp_path / "a.zarr")
    assert leftovers(tmp_path, "bad.h5") == []


def test_several_genomes_are_refused_with_their_names(tmp_path):
    path = v2(v2(tmp_path / "a.h5"), genome="mm10")
    with pytest.raises(SourceFormatError, match=r"'GRCh38', 'mm10'.*genome='GRCh38'"):
        lp.convert(path, tmp_path / "a.zarr")
    assert leftovers(tmp_path, "a.h5") == []


def test_elements_that_are_not_carried_are_listed(tmp_path):
    path = v3(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file["matrix/features/target_sets/panel"] = np.arange(3)
        file["matrix/extra"], file["droplet_latents"] = [1], [2]
    not_carried = open_source(path).not_carried
    assert [what.split(":")[0] for what in not_carried] == [
        "matrix/features/target_sets",
        "matrix/extra",
        "droplet_latents",
    ]


def test_several_files_become_one_store(tmp_path):
    unique = counts(20, 2, seed=3)
    paths = [v3(tmp_path / "a.h5", counts(30, 2)), v2(tmp_path / "b.h5", unique)]
    with pytest.warns(UserWarning, match="Observation names are not unique"):
        found = anndata.read_zarr(lp.convert(paths, tmp_path / "ab.zarr", order="source"))
    assert list(found.obs["dataset"].value_counts(sort=False)) == [30, 20]
    np.testing.assert_array_equal(found.X.toarray(), np.vstack([counts(30, 2).toarray(), unique.toarray()]))


def test_only_10x_files_are_recognised(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["X/data"], file["X/indices"], file["X/indptr"] = [1], [0], [0, 1]  # part of an H5AD
    with h5py.File(tmp_path / "matrix.h5", "w") as file:
        file["matrix"] = np.ones((2, 2))
    (tmp_path / "text.h5").write_text("matrix")
    truncated = tmp_path / "cut.h5"
    truncated.write_bytes(v3(tmp_path / "a.h5").read_bytes()[:3000])
    tenx = converters()["10x_h5"]
    for path in (tmp_path / "other.h5", tmp_path / "matrix.h5", tmp_path / "text.h5", truncated, tmp_path):
        assert not tenx.recognises(path)
    for path in (tmp_path / "a.h5", v2(tmp_path / "b.data")):
        assert [name for name, one in converters().items() if one.recognises(path)] == ["10x_h5"]
    for path in (tmp_path / "other.h5", truncated):
        with pytest.raises(SourceFormatError):
            tenx.open(path)
