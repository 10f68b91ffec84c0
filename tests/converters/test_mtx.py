"""10x mtx folders: stores hold what scanpy reads in them, and invalid files are refused."""

import pickle
import tracemalloc
import warnings

import numpy as np
import pytest
import scanpy
from scipy import sparse

import lazypert as lp
from lazypert.converter import converters, open_source
from lazypert.errors import ColumnNotFoundError, SourceFormatError
from tests.support.data import require_data
from tests.support.mtx import assert_same_as_scanpy, entries, folder, save
from tests.support.stores import counts, leftovers, read_store, small_blocks, small_grids

pytestmark = pytest.mark.slow  # compiles kernels; CI runs them

BANNER = "%%MatrixMarket matrix coordinate integer general\n"
GENES = ["TP53", "KRAS", "TP53", "NA", "007", "sgTP53", "é漢"]


def as_scanpy(path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return scanpy.read_10x_mtx(path, make_unique=False, **options)


FOLDERS = {
    "v3": ({}, {}),
    "v2": ({"gz": False, "legacy": True}, {}),
    "prefix": ({"prefix": "GSM1_"}, {"prefix": "GSM1_"}),
    "by_gene": ({"order": "gene"}, {}),
    "reals": ({"matrix": counts(30, 7, dtype="f8") * 0.1}, {}),
    "repeated_names": ({"genes": ["TP53", "A", "TP53", "B", "C", "D", "E"]}, {}),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_stores_equal_what_scanpy_reads(tmp_path, monkeypatch, kind):
    small_grids(monkeypatch)
    small_blocks(monkeypatch, 300)
    made, options = FOLDERS[kind]
    path = folder(tmp_path / "a", **made)
    store = lp.convert(path, tmp_path / "a.zarr")
    assert_same_as_scanpy(store, as_scanpy(path, **options), "f4")
    assert leftovers(tmp_path, "a", "a.zarr") == []


def test_the_store_of_a_published_file_equals_what_scanpy_reads(tmp_path):
    path = require_data("encodings", "10x_v3_mtx")
    store = lp.convert(path, tmp_path / "a.zarr")
    source = as_scanpy(path)
    assert source.shape == (1107, 507)
    assert_same_as_scanpy(store, source, "f4")
    by_id = as_scanpy(path, var_names="gene_ids")
    assert list(read_store(store).var["gene_ids"]) == list(by_id.var_names)
    alone = lp.convert(path / "matrix.mtx.gz", tmp_path / "b.zarr")
    assert_same_as_scanpy(alone, source, "f4")


@pytest.mark.parametrize("gz", [True, False])
def test_ranges_of_barcodes_equal_slices_of_all_barcodes(tmp_path, monkeypatch, gz):
    monkeypatch.setattr("lazypert_converters.mtx._LINES", 7)
    reader = open_source(folder(tmp_path / "a", gz=gz))
    names = list(reader.obs_names())
    assert names == [f"CELL-{i}" for i in range(30)]
    for start, stop in ((0, 7), (6, 8), (3, 29), (29, 30), (30, 30), (14, None)):
        assert list(reader.obs_names(start, stop)) == names[start:stop]
    assert reader.scratch_bytes("X") > 2**20 * (10 if gz else 1) // 2


def test_plain_text_with_carriage_returns_is_read(tmp_path):
    path = folder(tmp_path / "a", gz=False)
    expected = counts(30, 7).toarray()
    for file in path.iterdir():
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n").removesuffix(b"\r\n"))
    found = read_store(lp.convert(path, tmp_path / "a.zarr"))
    np.testing.assert_array_equal(found.X.toarray(), expected)
    assert list(found.obs_names)[-1] == "CELL-29"
    assert list(found.var["feature_types"])[-1] == "Gene Expression"


def test_names_that_look_like_numbers_stay_text(tmp_path):
    reader = open_source(folder(tmp_path / "a", genes=GENES))
    assert list(reader.var().index) == GENES
    assert list(reader.var()["gene_ids"]) == [f"ENSG{j}" for j in range(7)]


@pytest.mark.parametrize("order", ["cell", "gene"])
@pytest.mark.parametrize("size", [1, 300, 10**9])
@pytest.mark.parametrize("gz", [True, False], ids=["gz", "plain"])
def test_blocks_hold_every_entry_once_and_respect_the_size_limit(tmp_path, order, size, gz):
    matrix = counts(30, 7, dtype="i8")
    reader = open_source(folder(tmp_path / "a", matrix, order=order, gz=gz))
    blocks = reader.blocks("X", size)
    total = np.zeros(matrix.shape, dtype="i8")
    for spec in blocks:
        block = pickle.loads(pickle.dumps(reader)).read_block(spec)
        total[block.first_row : block.first_row + block.csr.shape[0]] += block.csr.to_dense()
        is_single = np.count_nonzero(np.diff(block.csr.indptr)) == 1 or len(np.unique(block.csr.indices)) == 1
        assert block.csr.nnz * 16 <= size or is_single
    np.testing.assert_array_equal(total, matrix.toarray())
    assert (len(blocks) == 1) == (size == 10**9)


@pytest.mark.parametrize("order", ["cell", "gene"])
def test_repeated_entries_are_summed(tmp_path, monkeypatch, order):
    small_blocks(monkeypatch, 1)
    lines = ["2 1 5", "1 1 1", "2 1 7", "1 3 2", "1 3 2"]
    if order == "gene":
        lines = sorted(lines)
    text = f"{BANNER}2 3 5\n" + "\n".join(lines)
    path = folder(tmp_path / "a", sparse.csr_array((3, 2)), text=text, gz=False)
    found = read_store(lp.convert(path, tmp_path / "a.zarr")).X
    assert found.has_canonical_format
    assert found.toarray().tolist() == [[1, 12], [0, 0], [4, 0]]


@pytest.mark.parametrize("shape", [(3, 2), (0, 2), (3, 0), (1, 1)], ids=str)
def test_empty_matrices_are_converted(tmp_path, shape):
    path = folder(tmp_path / "a", sparse.csr_array(shape, dtype="i8"))
    found = read_store(lp.convert(path, tmp_path / "a.zarr"))
    assert found.shape == shape
    assert found.X.nnz == 0


def test_unsorted_entries_are_refused(tmp_path):
    path = folder(tmp_path / "a", order="neither")
    with pytest.raises(SourceFormatError, match=r"matrix\.mtx\.gz.*unsorted entries.*scipy\.io\.mmwrite"):
        lp.convert(path, tmp_path / "a.zarr")
    assert leftovers(tmp_path, "a") == []


def test_missing_columns_and_embeddings_are_named_in_an_error(tmp_path):
    path = folder(tmp_path / "a")
    reader = open_source(path)
    assert reader == pickle.loads(pickle.dumps(reader))
    for read, says in (
        (lambda: reader.obs_column("x"), "obs column: got 'x', expected an obs column of"),
        (lambda: reader.read_obsm("X_pca", 0, 1), "embedding: got 'X_pca', expected an embedding of"),
    ):
        with pytest.raises(ColumnNotFoundError, match=says) as caught:
            read()
        assert repr(str(path)) in str(caught.value)
    with pytest.raises(ColumnNotFoundError, match=r"pert_col: got 'guide'.*There are none"):
        lp.convert(path, tmp_path / "a.zarr", pert_col="guide")


def mtx(body, sizes="7 30 2", banner=BANNER):
    return f"{banner}{sizes}\n{body}"


BAD = {
    "no_banner": ("1 1 1\n", "begins with '1 1 1'"),
    "dense": (mtx("", banner="%%MatrixMarket matrix array integer general\n"), "'matrix array integer general'"),
    "symmetric": (mtx("", banner=BANNER.replace("general", "symmetric")), "integer symmetric"),
    "pattern": (mtx("", banner=BANNER.replace("integer", "pattern")), "coordinate pattern"),
    "complex": (mtx("", banner=BANNER.replace("integer", "complex")), "coordinate complex"),
    "no_sizes": (f"{BANNER}% only a comment\n", "ends before the size line"),
    "two_sizes": (mtx("", sizes="7 30"), "has '7 30' as its size line"),
    "huge_sizes": (mtx("", sizes="7 3000000000 1"), "2\\^31"),
    "other_cells": (mtx("", sizes="7 29 0"), r"7 genes x 29 cells.*features\.tsv has 7.*barcodes\.tsv 30"),
    "transposed": (mtx("", sizes="30 7 0"), r"its matrix is cells x genes, expected genes x cells.*\.T"),
    "too_few": (mtx("1 1 1\n"), "has 1 entries, expected 2"),
    "too_many": (mtx("1 1 1\n1 2 1\n1 3 1\n"), "has 3 entries, expected 2"),
    "row_zero": (mtx("0 1 1\n1 1 1\n"), r"entry '0 1 1'.*a row from 1 to 7"),
    "row_large": (mtx("1 1 1\n8 1 1\n"), "entry '8 1 1'.*a row from 1 to 7"),
    "col_large": (mtx("1 1 1\n1 31 1\n"), "entry '1 31 1'.*a column from 1 to 30"),
    "row_wraps": (mtx("1 1 1\n4294967297 1 1\n"), "a row from 1 to 7"),
    "negative_row": (mtx("-1 1 1\n1 1 1\n"), "entry '-1 1 1'"),
    "missing_value": (mtx("1 1\n1 1 1\n"), "entry '1 1'"),
    "missing_value_blank": (mtx("1 1 \n1 1 1\n"), "entry '1 1'"),
    "four_numbers": (mtx("1 1 1 1\n1 1 1\n"), "entry '1 1 1 1'"),
    "cut_line": (mtx("1 1 1\n2 1"), "entry '2 1'"),
    "text": (mtx("1 1 1\n1 2 x\n"), "entry '1 2 x'"),
    "underscore": (mtx("1 1 1\n1 2 1_0\n"), "entry '1 2 1_0'"),
    "real_in_integer": (mtx("1 1 1.5\n1 2 1\n"), "entry '1 1 1.5'.*an integer"),
    "too_large": (mtx(f"1 1 {2**63}\n1 2 1\n"), "an integer of at most 64 bits"),
    "late_comment": (mtx("1 1 1\n% note\n1 2 1\n"), "entry '% note'"),
    "binary": (mtx("\0" * 100), "entry"),
}


@pytest.mark.parametrize("kind", BAD)
def test_invalid_matrices_are_refused_and_leave_no_store(tmp_path, kind):
    text, says = BAD[kind]
    path = folder(tmp_path / "a", text=text, gz=False)
    with pytest.raises(SourceFormatError, match=says) as caught:
        lp.convert(path, tmp_path / "a.zarr")
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 800
    assert leftovers(tmp_path, "a") == []


def test_invalid_and_missing_companion_files_are_refused(tmp_path):
    path = folder(tmp_path / "a")
    features = path / "features.tsv.gz"
    good = features.read_bytes()
    for content, says in (
        (b"", "features.tsv.gz has 0 lines"),
        (b"g\n" * 7, "features.tsv.gz.*has 1 column, expected at least two"),
        (b"a\tb\n" * 3 + b"a\tb\tc\td\n" * 4, "features.tsv.gz.*cannot be read"),
        (b"\xff\t\xfe\n" * 7, "features.tsv.gz.*cannot be read"),
        (good[:-9], "features.tsv.gz.*cannot be read"),
    ):
        features.write_bytes(content)
        with pytest.raises(SourceFormatError, match=says):
            lp.convert(path, tmp_path / "a.zarr")
    features.unlink()
    with pytest.raises(SourceFormatError, match=r"has no features: got none of .*'features.tsv.gz', 'genes.tsv.gz'"):
        lp.convert(path, tmp_path / "a.zarr")
    assert leftovers(tmp_path, "a") == []


def test_matrices_in_one_folder_are_selected_by_their_path(tmp_path):
    folder(tmp_path / "a", counts(3, 2, dtype="i8"), prefix="GSM1_")
    path = folder(tmp_path / "a", counts(4, 2, dtype="i8"), prefix="GSM2_", gz=False, legacy=True)
    with pytest.raises(SourceFormatError, match=r"has 2 matrices, 'GSM1_matrix\.mtx\.gz', 'GSM2_matrix\.mtx'"):
        open_source(path)
    assert open_source(path / "GSM1_matrix.mtx.gz").n_obs == 3
    assert open_source(path / "GSM2_matrix.mtx").n_obs == 4


def test_further_columns_are_listed_as_not_carried(tmp_path):
    path = folder(tmp_path / "a", gz=False)
    text = (path / "features.tsv").read_text().replace("\n", "\tchr1\t100\t200\n")  # as in multiome kits
    (path / "features.tsv").write_text(text)
    reader = open_source(path)
    assert reader.not_carried == ("features.tsv after its third column: stores keep the id, name and type of a gene",)
    assert list(reader.var()) == ["gene_ids", "feature_types"]


def test_a_matrix_without_companion_files_is_refused(tmp_path):
    save(tmp_path / "counts.mtx.gz", entries(counts(3, 2)))
    with pytest.raises(SourceFormatError, match=r"counts\.mtx\.gz.*names neither cells nor genes.*barcodes\.tsv"):
        open_source(tmp_path / "counts.mtx.gz")


def test_a_file_that_changed_after_opening_is_refused(tmp_path):
    path = folder(tmp_path / "a", gz=False)
    reader = open_source(path)
    specs = reader.blocks("X", 100)
    with (path / "matrix.mtx").open("a") as file:
        file.write("1 1 1\n")
    with pytest.raises(SourceFormatError, match="changed since it was opened"):
        reader.read_block(specs[0])


def test_only_matrix_market_files_and_10x_folders_are_recognised(tmp_path):
    converter = converters()["10x_mtx"]
    path = folder(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "matrix.mtx").write_text("gene,cell\n")
    (tmp_path / "matrix.mtx.gz").write_bytes(b"\x1f\x8b damaged")
    for other in (tmp_path / "empty", tmp_path / "matrix.mtx", tmp_path / "matrix.mtx.gz", path / "barcodes.tsv.gz"):
        assert not converter.recognises(other)
    for one in (path, path / "matrix.mtx.gz"):
        assert [name for name, known in converters().items() if known.recognises(one)] == ["10x_mtx"]


def test_a_truncated_or_damaged_gzip_file_is_refused(tmp_path):
    path = folder(tmp_path / "a", counts(200, 7, dtype="i8"))
    matrix = path / "matrix.mtx.gz"
    good = matrix.read_bytes()
    flipped = bytearray(good)
    flipped[-6] ^= 1  # the checksum
    for raw, says in (
        (good[:-300], "ends in the middle"),
        (good[:-1], "ends in the middle"),
        (bytes(flipped), "damaged"),
        (good + b"rest", "damaged"),
    ):
        matrix.write_bytes(raw)
        with pytest.raises(SourceFormatError, match=rf"matrix\.mtx\.gz.*{says}"):
            lp.convert(path, tmp_path / "a.zarr")
    assert leftovers(tmp_path, "a") == []


def test_memory_does_not_grow_with_file_size(tmp_path):
    per_cell = "".join(f"{gene} CELL 1\n" for gene in range(1, 1001))
    body = "".join(per_cell.replace("CELL", str(cell)) for cell in range(1, 1201))
    path = folder(tmp_path / "a", sparse.csr_array((1200, 1000)), text=mtx(body, "1000 1200 1200000"))
    reader = open_source(path)
    reader.blocks("X", 10**6)  # compiles
    tracemalloc.start()
    try:
        blocks = reader.blocks("X", 10**6)
        scanned = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        assert sum(reader.read_block(spec).csr.nnz for spec in blocks) == 1_200_000
        read = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(body) > 11e6
    assert scanned < 6e6
    assert read < 6e6
