"""The content hash of a cell depends on its genes and values, and on nothing about how they are stored."""

import numpy as np
import pytest
from scipy import sparse

from lazypert.splits.cell_content import MIN_GENES, content_hashes
from lazypert.splits.repeats import NOTHING
from tests.support.reports import gene_rich_screen, screens, with_counts
from tests.support.screens import in_store_order, source_of

N_GENES = 60


def hashes_by_name(source, **options):
    names = source.obs_names(np.arange(source.n_rows))
    hashes = content_hashes(source, np.ones(source.n_rows, bool), **options)
    return dict(zip(names, hashes.tolist(), strict=True))


@pytest.fixture(scope="module")
def adata():
    return gene_rich_screen()


@pytest.fixture(scope="module")
def original(adata, tmp_path_factory):
    return hashes_by_name(source_of(adata, tmp_path_factory.mktemp("original")))


def explicit_zeros(matrix):
    out = matrix.copy()
    out.data[::5] = 0
    return out


def test_different_cells_have_different_hashes(original):
    assert len(set(original.values())) == 60
    assert NOTHING not in original.values()


@pytest.mark.parametrize("dtype", ["f8", "f4", "u2", "i8"])
def test_the_dtype_does_not_matter(adata, original, tmp_path, dtype):
    assert hashes_by_name(source_of(with_counts(adata, adata.X.toarray().astype(dtype)), tmp_path)) == original


def test_the_order_of_genes_and_of_cells_does_not_matter(adata, original, tmp_path):
    rng = np.random.default_rng(1)
    shuffled = adata[rng.permutation(60), rng.permutation(N_GENES)].copy()
    assert list(shuffled.var_names) != list(adata.var_names)
    assert hashes_by_name(source_of(shuffled, tmp_path, order="source")) == original


def test_stored_zeros_do_not_matter(adata, tmp_path):
    zeroed = explicit_zeros(adata.X)
    assert (zeroed.data == 0).any()
    stored = with_counts(adata, zeroed)
    stored.X = zeroed
    dropped = with_counts(adata, zeroed.toarray())
    assert stored.X.nnz > dropped.X.nnz
    assert hashes_by_name(source_of(stored, tmp_path)) == hashes_by_name(source_of(dropped, tmp_path, name="b"))


def test_fractions_are_compared_as_float32(adata, tmp_path):
    values = np.log1p(adata.X.toarray().astype("f8"))
    narrow, wide = (with_counts(adata, values.astype(dtype)) for dtype in ("f4", "f8"))
    assert hashes_by_name(source_of(narrow, tmp_path)) == hashes_by_name(source_of(wide, tmp_path, name="wide"))


@pytest.mark.parametrize(("gene", "change"), [(0, 1), (N_GENES - 1, 1), (7, 100)])
def test_one_count_changes_the_hash(adata, original, tmp_path, gene, change):
    counts = adata.X.toarray()
    counts[:, gene] += change
    found = hashes_by_name(source_of(with_counts(adata, counts), tmp_path))
    assert all(found[name] != original[name] for name in original)


def test_values_of_other_genes_are_other_content(adata, original, tmp_path):
    moved = with_counts(adata, adata.X.toarray(), genes=[f"other{i}" for i in range(N_GENES)])
    assert set(hashes_by_name(source_of(moved, tmp_path)).values()).isdisjoint(original.values())


@pytest.mark.parametrize("join", ["inner", "outer"])
def test_only_genes_that_all_screens_have_are_compared(adata, tmp_path, join):
    other = adata[:, 9:].copy()
    other.obs_names = [f"copy of {name}" for name in adata.obs_names]
    found = hashes_by_name(screens(tmp_path, join, a=adata, b=other))
    assert all(found[name] == found[f"copy of {name}"] for name in adata.obs_names)
    assert len(set(found.values())) == 60


def test_cells_with_few_genes_have_no_hash(adata, tmp_path):
    rng = np.random.default_rng(1)
    thinned = with_counts(adata, adata.X.toarray() * (rng.random((60, 1)) > rng.random((60, N_GENES))))
    source = source_of(thinned, tmp_path)
    detected = (in_store_order(source, thinned).X.toarray() != 0).sum(axis=1)
    for min_genes in (0, 1, 15, 30, N_GENES):
        hashes = content_hashes(source, np.ones(60, bool), min_genes=min_genes)
        assert ((hashes != NOTHING) == (detected >= min_genes)).all()


def test_the_default_leaves_out_poor_cells(adata, tmp_path):
    counts = adata.X.toarray()
    counts[0] = 0
    counts[1, MIN_GENES - 1 :], counts[1, : MIN_GENES - 1] = 0, 1
    counts[2, MIN_GENES:], counts[2, :MIN_GENES] = 0, 1
    found = hashes_by_name(source_of(with_counts(adata, counts), tmp_path))
    assert [found[name] == NOTHING for name in adata.obs_names[:4]] == [True, True, False, False]


def test_cells_that_are_not_wanted_are_not_read(adata, original, tmp_path):
    source = source_of(adata, tmp_path)
    wanted = np.arange(60) % 3 == 0
    found = content_hashes(source, wanted)
    names = source.obs_names(np.arange(60))
    assert found.tolist() == [
        original[name] if is_wanted else NOTHING for name, is_wanted in zip(names, wanted, strict=True)
    ]


@pytest.mark.parametrize("values", [1, 100, 1000])
def test_the_block_size_does_not_matter(adata, original, tmp_path, monkeypatch, values):
    monkeypatch.setattr("lazypert.splits.cell_content._BLOCK_VALUES", values)
    assert hashes_by_name(source_of(adata, tmp_path)) == original


def test_the_configured_layer_is_compared(adata, original, tmp_path):
    layered = with_counts(adata, sparse.csr_matrix(adata.shape, dtype="f4"))
    layered.layers["counts"] = adata.X
    assert hashes_by_name(source_of(layered, tmp_path, layer="counts")) == original
    assert set(hashes_by_name(source_of(layered, tmp_path, name="again")).values()) == {int(NOTHING)}
