"""Genes are aligned by name, in the order of the first screen."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypert.errors import ColumnNotFoundError, ConfigError, SourceFormatError
from lazypert.screen.gene_alignment import align_genes, gene_labels, versions_apart

gene_lists = st.lists(st.lists(st.sampled_from("abcdef"), max_size=6, unique=True), min_size=1, max_size=3)


def frames_of(genes, **columns):
    return [pd.DataFrame(index=pd.Index(names, dtype=object)) for names in genes]


def expected_genes(genes, join):
    """Shared genes: those of the first screen in its order, and with "outer" the others in order of appearance."""
    in_all = [gene for gene in genes[0] if all(gene in other for other in genes)]
    return in_all if join == "inner" else list(dict.fromkeys(gene for names in genes for gene in names))


@given(gene_lists, st.sampled_from(["inner", "outer"]))
@settings(max_examples=50, deadline=None)
def test_columns_are_those_of_the_same_gene(genes, join):
    names = [f"s{i}" for i in range(len(genes))]
    shared = expected_genes(genes, join)
    if not shared and any(list(other) != list(genes[0]) for other in genes):
        with pytest.raises(SourceFormatError, match="share no gene names"):
            align_genes(frames_of(genes), names, join)
        return
    aligned = align_genes(frames_of(genes), names, join)
    assert sorted(aligned.var.index) == sorted(shared)
    if join == "inner":
        assert aligned.var.index.tolist() == shared
    assert aligned.is_same == all(list(other) == list(genes[0]) for other in genes)
    for own, column_of, new_col in zip(genes, aligned.column_of, aligned.new_col, strict=True):
        assert column_of.dtype == new_col.dtype == np.int32
        assert [own[c] if c >= 0 else None for c in column_of] == [g if g in own else None for g in aligned.var.index]
        assert [aligned.var.index[c] if c >= 0 else None for c in new_col] == [g if g in shared else None for g in own]


class TestOuter:
    frames = (
        pd.DataFrame({"id": [1, 2], "hvg": [True, False]}, index=["a", "b"]),
        pd.DataFrame({"id": [3, 2], "other": [0, 0]}, index=["c", "b"]),
    )

    def test_says_where_a_gene_was_measured(self):
        var = align_genes(self.frames, ["one", "two"], "outer").var.loc[["a", "b", "c"]]
        assert var["measured_in_one"].tolist() == [True, True, False]
        assert var["measured_in_two"].tolist() == [False, True, True]

    def test_fills_columns_of_the_first_screen_from_the_others(self):
        var = align_genes(self.frames, ["one", "two"], "outer").var.loc[["a", "b", "c"]]
        assert var["id"].tolist() == [1, 2, 3]
        assert var["id"].dtype == np.int64
        assert var["hvg"].dtype == "boolean"
        assert var["hvg"].isna().tolist() == [False, False, True]
        assert "other" not in var

    def test_different_types_become_text(self):
        frames = [pd.DataFrame({"id": [1]}, index=["a"]), pd.DataFrame({"id": ["x"]}, index=["b"])]
        assert align_genes(frames, ["one", "two"], "outer").var.loc[["a", "b"], "id"].tolist() == ["1", "x"]


def test_repeated_genes_are_allowed_only_if_all_screens_are_the_same():
    frames = frames_of([["a", "a"], ["a", "a"]])
    assert align_genes(frames, ["one", "two"], "inner").is_same
    with pytest.raises(SourceFormatError, match=r"'two' has 'a' more than once.*var_names_make_unique"):
        align_genes(frames_of([["a", "b"], ["a", "a"]]), ["one", "two"], "inner")


ID, OTHER = "ENSG00000141510", "ENSG00000133703"


@pytest.mark.parametrize(
    ("genes", "n"),
    [
        ([[ID, OTHER], [f"{ID}.18", OTHER]], 1),
        ([[f"{ID}.18", f"{OTHER}.2"], [f"{ID}.17", f"{OTHER}.2"], [f"{ID}.18", f"{OTHER}.1"]], 2),
        ([[ID, OTHER], [ID]], 0),
        ([["a.1", "b"], ["a.2", "b"]], 0),
        ([[f"{ID}.1", f"{ID}.2"], [f"{ID}.2", f"{ID}.1"]], 0),
        ([[]], 0),
    ],
)
def test_versions_of_ids_that_keep_genes_apart_are_counted(genes, n):
    found = versions_apart(frames_of(genes))
    assert found is None if n == 0 else found.startswith(f"{n} genes have different versions of their Ensembl id")


def test_unknown_joins_are_refused():
    with pytest.raises(ConfigError, match="join: got 'left', expected 'inner' or 'outer'"):
        align_genes(frames_of([["a"]]), ["one"], "left")


def test_gene_labels_come_from_the_index_or_a_column():
    var = pd.DataFrame({"gene_name": ["A", "B"]}, index=["ENSG1", "ENSG2"])
    assert gene_labels(var, None).tolist() == ["ENSG1", "ENSG2"]
    assert gene_labels(var, "gene_name").tolist() == ["A", "B"]
    with pytest.raises(ColumnNotFoundError, match=r"var_gene_col: got 'gene_names'.*Did you mean 'gene_name'"):
        gene_labels(var, "gene_names")
