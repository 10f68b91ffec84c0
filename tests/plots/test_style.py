"""Figures need matplotlib only when they are drawn, leave its settings alone, and shorten long labels."""

import sys

import pytest

from lazypert.errors import LazypertError
from lazypert.plots.style import format_count, new_figure, shorten, style_context


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with style_context(), pytest.raises(LazypertError, match=r'pip install "lazypert\[plot\]"'):
        new_figure(1, 1)


def test_the_style_ends_with_its_context():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    with style_context():
        assert mpl.rcParams["legend.frameon"] is False
        assert new_figure(3, 2).get_size_inches().tolist() == [3, 2]
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    ("n", "text"), [(0, "0"), (9_999, "9999"), (12_345, "12k"), (999_000, "999k"), (3_400_000, "3.4M")]
)
def test_counts_are_short(n, text):
    assert format_count(n) == text


def test_long_labels_are_cut():
    assert shorten("x" * 20) == "x" * 20
    assert shorten("x" * 21) == "x" * 19 + "…"
    assert shorten("abcdef", 3) == "ab…"
