"""The aligned matrix of several stores equals their dense concatenation, whatever their genes and dtypes."""

import numpy as np
import pytest
from scipy import sparse

from lazypert import PerturbationConcatSource
from lazypert.sources.aligned_matrix import RowSegments
from lazypert.sparse.columns import ColumnSelection
from tests.support.native import hide_native_functions
from tests.support.screens import concatenated, holey_screen, in_store_order, source_of

DTYPES = {"equal": ("u2", "u2"), "unsigned": ("u2", "u4"), "signed": ("u2", "i4"), "fractions": ("u2", "f4")}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("unsigned", "signed")]  # each compiles kernels


@pytest.fixture(scope="module", params=["equal", "fractions", *SLOW])
def mixed(request, tmp_path_factory):
    """Make sources of two screens whose values need these dtypes; returns their values in AnnData too."""
    folder, rng = tmp_path_factory.mktemp(request.param), np.random.default_rng(3)
    screens, sources = [], []
    for i, dtype in enumerate(DTYPES[request.param]):
        adata = holey_screen(50, i, genes=[f"g{j}" for j in range(12)])
        values = adata.X.toarray().astype("f8")
        values[::7] = 0
        values[1] = {"u2": 60_000, "u4": 2**22, "i4": -70_000, "f4": 0.25}[dtype]
        adata.X = sparse.csr_matrix(values.astype("f4"))
        other = adata[:, [f"g{j}" for j in rng.permutation(12)]].copy()
        other.var_names = [f"g{int(name[1:]) + 3}" for name in other.var_names]
        for name, screen in (("same", adata), ("other", other)):
            source = source_of(screen, folder / name, name=f"s{i}", order="grouped")
            assert source.matrix.dtype == dtype
            screens.append(in_store_order(source, screen))
            sources.append(source)

    def make(genes, join):
        which = {"same": (0, 2), "other": (0, 3)}[genes]
        chosen = [sources[i] for i in which]
        source = PerturbationConcatSource(chosen, join=join)
        return source, concatenated([screens[i] for i in which], chosen, list(source.var.index))[0]

    return make


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "plain"])
@pytest.mark.parametrize(("genes", "join"), [("same", "inner"), ("other", "inner"), ("other", "outer")])
def test_every_way_of_reading_rows_gives_the_same_values(mixed, genes, join, compiled, monkeypatch):
    if not compiled:
        hide_native_functions(monkeypatch)
    source, expected = mixed(genes, join)
    n = expected.shape[1]
    wanted = np.array([7, 0, 5])
    selection = ColumnSelection.from_indices(wanted, n)
    for rows in ([3, 99, 3, 50, 0, 49], list(range(100)), [99], [10, 11], [], [60, 60]):
        at, dense = np.array(rows, int), expected[np.array(rows, int)]
        block = source.matrix.read_rows(at)
        assert block.data.dtype == source.matrix.dtype
        np.testing.assert_array_equal(block.to_dense(np.float64), dense)
        assert all(
            (np.diff(block.indices[a:b]) > 0).all() for a, b in zip(block.indptr, block.indptr[1:], strict=False)
        )

        view = source.matrix.read_view(at, layout=backwards)
        assert view.data.dtype == source.matrix.dtype
        np.testing.assert_array_equal(to_dense(view), dense)
        assert view.offsets.tolist() == backwards(view.lengths)[0].tolist()

        for totals in (False, True):
            chosen = source.matrix.read_columns(at, selection, totals=totals)
            np.testing.assert_array_equal(to_dense(chosen), dense[:, wanted])
            if totals:
                np.testing.assert_allclose(chosen.totals, dense.sum(axis=1))
        np.testing.assert_array_equal(source.matrix.read_dense(at, selection), dense[:, wanted])
        total = dense.sum(axis=1, keepdims=True)
        scaled = np.where(total > 0, dense * 100 / np.where(total > 0, total, 1), 0)
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(
                source.matrix.read_dense(at, selection, target_sum=100.0),
                np.log1p(scaled[:, wanted]),
                rtol=3e-6,
                atol=1e-7,
            )


def backwards(lengths):
    """Layout from the last row to the first, with a gap between rows."""
    ends = np.cumsum(lengths[::-1] + 1)
    return (ends - lengths[::-1] - 1)[::-1], int(lengths.sum()) + len(lengths)


def to_dense(view):
    """Dense rows of a view."""
    out = np.zeros((len(view.offsets), view.n_cols))
    for row, start, length in zip(out, view.offsets, view.lengths, strict=True):
        row[view.indices[start : start + length]] = view.data[start : start + length]
    return out


def test_rows_are_divided_among_segments():
    segments = RowSegments([3, 0, 4])
    assert len(segments) == 7
    divided = segments.divide(np.array([6, 0, 3, 2, 6]))
    assert [(s, p.tolist(), r.tolist()) for s, p, r in divided] == [(0, [1, 3], [0, 2]), (2, [0, 2, 4], [3, 0, 3])]
    assert [item.segment for item in segments.divide(np.array([], int))] == [0]
    for row in (-1, 7):
        with pytest.raises(IndexError, match="expected rows of a screen of 7 cells"):
            segments.divide(np.array([row]))


def test_gathered_rows_are_in_the_requested_order():
    segments = RowSegments([3, 0, 4])
    read = [np.array([0, 1, 2], "u1"), np.array([], "f4"), np.array([10, 11, 12, 13], "u1")]
    found = segments.gather(np.array([6, 0, 3, 2, 6]), lambda segment, rows: read[segment][rows])
    assert found.tolist() == [13, 0, 10, 2, 13]
    assert found.dtype == "f4"


def test_the_repr_is_one_line(mixed):
    source, expected = mixed("same", "inner")
    assert repr(source.matrix) == f"AlignedMatrix(100 x {expected.shape[1]} {source.matrix.dtype} from 2 stores)"
