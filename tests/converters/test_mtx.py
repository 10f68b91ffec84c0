"""10x mtx folders: stores hold what scanpy reads in them; every entry is read exactly or refused."""

import gzip
import pickle
import tracemalloc
import warnings

import anndata
import numpy as np
import pytest
import scanpy
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import lazypert as lp
from lazypert.converter import converters, open_source
from lazypert.errors import ColumnNotFoundError, SourceFormatError
from lazypert_converters import _text
from lazypert_converters._matrix_market import parse, read_header, scan
from lazypert_converters._text import TextFile
from tests.support.data import DATA
from tests.support.stores import counts, dense, leftovers, read_store, small_blocks, small_grids, source_row

pytestmark = pytest.mark.slow  # with the compiling they need; CI runs them

BANNER = "%%MatrixMarket matrix coordinate integer general\n"
GENES = ["TP53", "KRAS", "TP53", "NA", "007", "sgTP53", "é漢"]


def save(path, text):
    raw = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(raw, 1) if path.name.endswith(".gz") else raw)


def entries(matrix, order="cell"):
    """Text of a cells x genes matrix, as 10x writes it: genes x cells, counted from 1."""
    found = sparse.coo_array(matrix)
    keys = {"cell": (found.col, found.row), "gene": (found.row, found.col)}
    rows = np.lexsort(keys[order]) if order in keys else np.random.default_rng(0).permutation(found.nnz)
    kind = "integer" if found.data.dtype.kind in "iu" else "real"
    text = [f"%%MatrixMarket matrix coordinate {kind} general\n%metadata_json: {{}}\n"]
    text += [f"{matrix.shape[1]} {matrix.shape[0]} {found.nnz}\n"]
    text += [f"{found.col[k] + 1} {found.row[k] + 1} {found.data[k]}\n" for k in rows]
    return "".join(text)


def folder(path, matrix=None, *, text=None, gz=True, legacy=False, prefix="", order="cell", genes=None):
    path.mkdir(exist_ok=True)
    matrix = counts(30, 7, dtype="i8") if matrix is None else matrix
    n_obs, n_vars = matrix.shape
    genes = [f"gene{j}" for j in range(n_vars)] if genes is None else genes
    packing = ".gz" if gz else ""
    kind = "" if legacy else "\tGene Expression"
    save(path / f"{prefix}matrix.mtx{packing}", entries(matrix, order) if text is None else text)
    save(path / f"{prefix}barcodes.tsv{packing}", "".join(f"CELL-{i}\n" for i in range(n_obs)))
    table = "".join(f"ENSG{j}\t{genes[j]}{kind}\n" for j in range(n_vars))
    save(path / f"{prefix}{'genes' if legacy else 'features'}.tsv{packing}", table)
    return path


def as_scanpy(path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return scanpy.read_10x_mtx(path, make_unique=False, gex_only=False, **options)


def assert_same_as_scanpy(store, source):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Variable names are not unique")
        found, rows = anndata.read_zarr(store), source_row(store)
    np.testing.assert_array_equal(np.sort(rows), np.arange(source.n_obs))
    assert list(found.obs_names) == list(source.obs_names[rows])
    assert list(found.var_names) == list(source.var_names)
    assert list(found.var) == list(source.var)
    for name in source.var:
        assert list(found.var[name]) == list(source.var[name])
    assert list(found.obs) == []
    np.testing.assert_array_equal(dense(found.X).astype("f4"), dense(source.X)[rows])  # scanpy rounds to floats
    assert found.X.has_canonical_format
    lp.verify(store)


FOLDERS = {
    "v3": ({}, {}),
    "v2": ({"gz": False, "legacy": True}, {}),
    "prefix": ({"prefix": "GSM1_"}, {"prefix": "GSM1_"}),
    "by_gene": ({"order": "gene"}, {}),
    "reals": ({"matrix": counts(30, 7, dtype="f8") * 0.1}, {}),
    "repeated_names": ({"genes": ["TP53", "A", "TP53", "B", "C", "D", "E"]}, {}),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_the_store_equals_what_scanpy_reads(tmp_path, monkeypatch, kind):
    small_grids(monkeypatch)
    small_blocks(monkeypatch, 300)
    made, options = FOLDERS[kind]
    path = folder(tmp_path / "a", **made)
    store = lp.convert(path, tmp_path / "a.zarr")
    assert_same_as_scanpy(store, as_scanpy(path, **options))
    assert leftovers(tmp_path, "a", "a.zarr") == []


def test_published_files(tmp_path):
    path = DATA / "encodings" / "10x_v3_mtx"
    if not path.is_dir():
        pytest.skip("10x_v3_mtx is not in the folder of example files (set LAZYPERT_DATA)")
    store = lp.convert(path, tmp_path / "a.zarr")
    source = as_scanpy(path)
    assert source.shape == (1107, 507)
    assert_same_as_scanpy(store, source)
    by_id = as_scanpy(path, var_names="gene_ids")
    assert list(read_store(store).var["gene_ids"]) == list(by_id.var_names)
    alone = lp.convert(path / "matrix.mtx.gz", tmp_path / "b.zarr")
    assert_same_as_scanpy(alone, source)


@pytest.mark.parametrize("gz", [True, False])
def test_pieces_of_the_barcodes_are_the_barcodes(tmp_path, monkeypatch, gz):
    monkeypatch.setattr("lazypert_converters.mtx._LINES", 7)
    reader = open_source(folder(tmp_path / "a", gz=gz))
    names = list(reader.obs_names())
    assert names == [f"CELL-{i}" for i in range(30)]
    for start, stop in ((0, 7), (6, 8), (3, 29), (29, 30), (30, 30), (14, None)):
        assert list(reader.obs_names(start, stop)) == names[start:stop]
    assert reader.scratch_bytes("X") > 2**20 * (10 if gz else 1) // 2


def test_plain_text_and_carriage_returns_are_read(tmp_path):
    path = folder(tmp_path / "a", gz=False)
    expected = counts(30, 7).toarray()
    for file in path.iterdir():
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n").removesuffix(b"\r\n"))
    found = read_store(lp.convert(path, tmp_path / "a.zarr"))
    np.testing.assert_array_equal(found.X.toarray(), expected)
    assert list(found.obs_names)[-1] == "CELL-29"
    assert list(found.var["feature_types"])[-1] == "Gene Expression"


def test_names_are_text_whatever_they_look_like(tmp_path):
    reader = open_source(folder(tmp_path / "a", genes=GENES))
    assert list(reader.var().index) == GENES
    assert list(reader.var()["gene_ids"]) == [f"ENSG{j}" for j in range(7)]


@pytest.mark.parametrize("order", ["cell", "gene"])
@pytest.mark.parametrize("size", [1, 300, 10**9])
@pytest.mark.parametrize("gz", [True, False], ids=["gz", "plain"])
def test_blocks_hold_every_entry_once_and_keep_to_the_budget(tmp_path, order, size, gz):
    matrix = counts(30, 7, dtype="i8")
    reader = open_source(folder(tmp_path / "a", matrix, order=order, gz=gz))
    blocks = reader.blocks("X", size)
    total = np.zeros(matrix.shape, dtype="i8")
    for spec in blocks:
        block = pickle.loads(pickle.dumps(reader)).read_block(spec)
        total[block.first_row : block.first_row + block.csr.shape[0]] += block.csr.to_dense()
        one = np.count_nonzero(np.diff(block.csr.indptr)) == 1 or len(np.unique(block.csr.indices)) == 1
        assert block.csr.nnz * 16 <= size or one
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
def test_empty_matrices(tmp_path, shape):
    path = folder(tmp_path / "a", sparse.csr_array(shape, dtype="i8"))
    found = read_store(lp.convert(path, tmp_path / "a.zarr"))
    assert found.shape == shape
    assert found.X.nnz == 0


def test_entries_in_no_order_are_refused(tmp_path):
    path = folder(tmp_path / "a", order="none")
    with pytest.raises(SourceFormatError, match=r"matrix\.mtx\.gz.*in no order.*scipy\.io\.mmwrite"):
        lp.convert(path, tmp_path / "a.zarr")
    assert leftovers(tmp_path, "a") == []


def test_no_annotations(tmp_path):
    path = folder(tmp_path / "a")
    reader = open_source(path)
    assert reader == pickle.loads(pickle.dumps(reader))
    for read in (lambda: reader.obs_column("x"), lambda: reader.read_obsm("X_pca", 0, 1)):
        with pytest.raises(ColumnNotFoundError, match="a"):
            read()
    with pytest.raises(ColumnNotFoundError, match=r"pert_col='guide'.*There are none"):
        lp.convert(path, tmp_path / "a.zarr", pert_col="guide")


def mtx(body, sizes="7 30 2", banner=BANNER):
    return f"{banner}{sizes}\n{body}"


BAD = {
    "no_banner": ("1 1 1\n", "begins with '1 1 1'"),
    "dense": (mtx("", banner="%%MatrixMarket matrix array integer general\n"), "'matrix array integer general'"),
    "symmetric": (mtx("", banner=BANNER.replace("general", "symmetric")), "integer symmetric"),
    "pattern": (mtx("", banner=BANNER.replace("integer", "pattern")), "coordinate pattern"),
    "complex": (mtx("", banner=BANNER.replace("integer", "complex")), "coordinate complex"),
    "no_sizes": (f"{BANNER}% only a comment\n", "ends before the line of sizes"),
    "two_sizes": (mtx("", sizes="7 30"), "has '7 30' as its sizes"),
    "huge_sizes": (mtx("", sizes="7 3000000000 1"), "2\\^31"),
    "other_cells": (mtx("", sizes="7 29 0"), r"7 genes x 29 cells.*features\.tsv has 7.*barcodes\.tsv 30"),
    "transposed": (mtx("", sizes="30 7 0"), r"of cells x genes, expected genes x cells.*\.T"),
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
def test_what_is_wrong_is_named_and_no_store_is_left(tmp_path, kind):
    text, says = BAD[kind]
    path = folder(tmp_path / "a", text=text, gz=False)
    with pytest.raises(SourceFormatError, match=says) as caught:
        lp.convert(path, tmp_path / "a.zarr")
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 800
    assert leftovers(tmp_path, "a") == []


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    path = folder(tmp_path / "a")
    features = path / "features.tsv.gz"
    good = features.read_bytes()
    for content, says in (
        (b"", "features.tsv.gz has 0 lines"),
        (b"g\n" * 7, "features.tsv.gz.*has 1 column, expected two"),
        (b"a\tb\n" * 3 + b"a\tb\tc\td\n" * 4, "features.tsv.gz.*cannot be read"),
        (b"\xff\t\xfe\n" * 7, "features.tsv.gz.*cannot be read"),
        (good[:-9], "features.tsv.gz.*cannot be read"),
    ):
        features.write_bytes(content)
        with pytest.raises(SourceFormatError, match=says):
            lp.convert(path, tmp_path / "a.zarr")
    features.unlink()
    with pytest.raises(SourceFormatError, match=r"without its features.*'features.tsv.gz', 'genes.tsv.gz'"):
        lp.convert(path, tmp_path / "a.zarr")
    assert leftovers(tmp_path, "a") == []


def test_several_matrices_of_one_folder_are_told_apart_by_their_prefix(tmp_path):
    folder(tmp_path / "a", counts(3, 2, dtype="i8"), prefix="GSM1_")
    path = folder(tmp_path / "a", counts(4, 2, dtype="i8"), prefix="GSM2_", gz=False, legacy=True)
    with pytest.raises(SourceFormatError, match=r"has 2 matrices, 'GSM1_matrix\.mtx\.gz', 'GSM2_matrix\.mtx'"):
        open_source(path)
    assert open_source(path / "GSM1_matrix.mtx.gz").n_obs == 3
    assert open_source(path / "GSM2_matrix.mtx").n_obs == 4


def test_further_columns_are_said_not_to_be_carried(tmp_path):
    path = folder(tmp_path / "a", gz=False)
    text = (path / "features.tsv").read_text().replace("\n", "\tchr1\t100\t200\n")  # as of multiome kits
    (path / "features.tsv").write_text(text)
    reader = open_source(path)
    assert reader.not_carried == ("features.tsv: only its first three columns",)
    assert list(reader.var()) == ["gene_ids", "feature_types"]


def test_a_matrix_alone_is_told_what_it_lacks(tmp_path):
    save(tmp_path / "counts.mtx.gz", entries(counts(3, 2)))
    with pytest.raises(SourceFormatError, match=r"counts\.mtx\.gz.*names neither cells nor genes.*barcodes\.tsv"):
        open_source(tmp_path / "counts.mtx.gz")


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    path = folder(tmp_path / "a", gz=False)
    reader = open_source(path)
    specs = reader.blocks("X", 100)
    with (path / "matrix.mtx").open("a") as file:
        file.write("1 1 1\n")
    with pytest.raises(SourceFormatError, match="changed since it was opened"):
        reader.read_block(specs[0])


def test_only_mtx_is_recognised(tmp_path):
    converter = converters()["10x_mtx"]
    path = folder(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "matrix.mtx").write_text("gene,cell\n")
    (tmp_path / "matrix.mtx.gz").write_bytes(b"\x1f\x8b damaged")
    for other in (tmp_path / "empty", tmp_path / "matrix.mtx", tmp_path / "matrix.mtx.gz", path / "barcodes.tsv.gz"):
        assert not converter.recognises(other)
    for one in (path, path / "matrix.mtx.gz"):
        assert [name for name, known in converters().items() if known.recognises(one)] == ["10x_mtx"]


def test_a_gzip_file_cut_short_or_damaged_is_refused(tmp_path):
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


@pytest.fixture
def small_text(monkeypatch):
    """Blocks and marks of a few bytes, so that small files have many."""
    monkeypatch.setattr(_text, "_RAW", 7)
    monkeypatch.setattr(_text, "BLOCK", 50)
    monkeypatch.setattr(_text, "_MARK_STEP", 30)
    monkeypatch.setattr(_text, "_MAX_MARKS", 6)


@pytest.mark.parametrize("packing", ["plain", "one", "members", "padded"])
@pytest.mark.parametrize("is_cold", [True, False], ids=["cold", "warm"])
def test_text_is_the_same_from_every_offset(tmp_path, small_text, packing, is_cold):
    lines = [b"%d %d\n" % (n, n * 7919) for n in range(120)]
    text = b"".join(lines)
    raw = {
        "plain": text,
        "one": gzip.compress(text),
        "members": b"".join(gzip.compress(b"".join(lines[i : i + 9])) for i in range(0, 120, 9)),
        "padded": gzip.compress(text[:100]) + b"\0" * 40 + gzip.compress(text[100:]) + b"\0" * 40,
    }[packing]
    path = tmp_path / "text"
    path.write_bytes(raw)
    file = TextFile(path)
    starts = [0, *np.cumsum([len(line) for line in lines]).tolist()]
    for first in range(0, 120, 13):
        for last in range(first, 121, 17):
            if is_cold:
                file = TextFile(path)
            parts = list(file.lines(starts[first], starts[last]))
            assert b"".join(block for _, block in parts) == text[starts[first] : starts[last]]
            assert all(block == text[offset : offset + len(block)] for offset, block in parts)
            assert all(block.endswith(b"\n") for _, block in parts)
    assert list(file.lines(len(text))) == []
    if packing != "plain" and not is_cold:
        assert 2 < len(file._marks) <= 6


def test_a_line_without_end_is_refused(tmp_path, small_text):
    (tmp_path / "text").write_bytes(b"1" * 200)
    with pytest.raises(SourceFormatError, match="a line of more than 50 bytes"):
        list(TextFile(tmp_path / "text").lines())


def read_values(tmp_path, kind, tokens):
    path = tmp_path / "numbers.mtx"
    body = "".join(f"1 {n + 1} {token}\n" for n, token in enumerate(tokens))
    path.write_text(f"%%MatrixMarket matrix coordinate {kind} general\n1 {len(tokens)} {len(tokens)}\n{body}")
    text = TextFile(path)
    header = read_header(text)
    return np.concatenate([parse(path, header, block, start).value for start, block in text.lines(header.body)])


NUMBERS = st.one_of(
    st.floats().map(repr),
    st.floats(width=32).map("{:.8e}".format),
    st.decimals(allow_nan=False, allow_infinity=False, places=3).map(str),
    st.from_regex(r"[+-]?[0-9]{1,20}(\.[0-9]{0,20})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
    st.from_regex(r"[+-]?\.[0-9]{1,5}", fullmatch=True),
)


@settings(max_examples=100, deadline=None)
@given(tokens=st.lists(NUMBERS, min_size=1, max_size=30))
@pytest.mark.slow
def test_reals_are_read_as_python_reads_them(tmp_path_factory, tokens):
    found = read_values(tmp_path_factory.mktemp("reals"), "real", tokens)
    np.testing.assert_array_equal(found.view("i8"), np.array([float(t) for t in tokens]).view("i8"))


@settings(max_examples=50, deadline=None)
@given(numbers=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=30))
def test_integers_are_exact(tmp_path_factory, numbers):
    tokens = [f"{n:+}" if n % 2 else f"{n:022}" for n in numbers]
    assert read_values(tmp_path_factory.mktemp("integers"), "integer", tokens).tolist() == numbers


@settings(max_examples=50, deadline=None)
@given(data=st.data(), order=st.sampled_from(["cell", "gene", "none"]))
def test_the_scan_finds_where_each_row_begins(tmp_path_factory, data, order):
    n_obs, n_vars = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    matrix = sparse.random_array(
        (n_obs, n_vars), density=0.4, rng=data.draw(st.integers(0, 99)), data_sampler=lambda size: np.ones(size)
    )
    text = entries(matrix, order)
    path = tmp_path_factory.mktemp("scan") / "matrix.mtx"
    path.write_text(text)
    file = TextFile(path)
    genes, cells = scan(file, read_header(file))
    keys = [tuple(map(int, line.split()[:2])) for line in text.splitlines()[3:]]
    for axis, found in enumerate((genes, cells)):
        major = [key[axis] - 1 for key in keys]
        assert (found.fault is None) == (major == sorted(major))
        if found.fault is not None:
            assert major[: found.fault] == sorted(major[: found.fault])
            assert major[found.fault] < major[found.fault - 1]
            continue
        np.testing.assert_array_equal(np.diff(found.first), np.bincount(major, minlength=found.n))
        for one in range(found.n):
            piece = text[found.offset[one] : found.offset[one + 1]]
            assert [int(line.split()[axis]) - 1 for line in piece.splitlines()] == [one] * major.count(one)


def test_memory_does_not_grow_with_the_file(tmp_path):
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
