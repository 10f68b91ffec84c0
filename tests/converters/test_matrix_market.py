"""Matrix Market numbers are parsed exactly, and the scan finds where the entries of each row begin."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from lazypert_converters._matrix_market import parse, read_header, scan
from lazypert_converters._text import TextFile
from tests.support.mtx import entries

pytestmark = pytest.mark.slow  # compiles kernels


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
def test_reals_equal_those_that_python_parses(tmp_path_factory, tokens):
    found = read_values(tmp_path_factory.mktemp("reals"), "real", tokens)
    np.testing.assert_array_equal(found.view("i8"), np.array([float(t) for t in tokens]).view("i8"))


@settings(max_examples=50, deadline=None)
@given(numbers=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=30))
def test_integers_are_exact(tmp_path_factory, numbers):
    tokens = [f"{n:+}" if n % 2 else f"{n:022}" for n in numbers]
    assert read_values(tmp_path_factory.mktemp("integers"), "integer", tokens).tolist() == numbers


@settings(max_examples=50, deadline=None)
@given(data=st.data(), order=st.sampled_from(["cell", "gene", "neither"]))
def test_the_scan_finds_where_the_entries_of_each_row_begin(tmp_path_factory, data, order):
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
        assert (found.unsorted_at is None) == (major == sorted(major))
        if found.unsorted_at is not None:
            assert major[: found.unsorted_at] == sorted(major[: found.unsorted_at])
            assert major[found.unsorted_at] < major[found.unsorted_at - 1]
            continue
        np.testing.assert_array_equal(np.diff(found.first), np.bincount(major, minlength=found.n))
        for one in range(found.n):
            lines = text[found.offset[one] : found.offset[one + 1]]
            assert [int(line.split()[axis]) - 1 for line in lines.splitlines()] == [one] * major.count(one)
