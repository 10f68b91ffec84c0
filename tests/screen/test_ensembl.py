"""Versions of Ensembl ids are removed, and nothing else."""

import numpy as np
import pandas as pd
import pytest

from lazypert.errors import SourceFormatError
from lazypert.screen.ensembl import without_versions
from lazypert.screen.gene_alignment import align_genes
from lazypert.screen.targets import target_genes
from tests.support.screens import make_cells

TP53, MYC = "ENSG00000141510", "ENSG00000136997"


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        (f"{TP53}.18", TP53),
        ("ENSMUSG00000059552.14", "ENSMUSG00000059552"),
        *((name, name) for name in (TP53, "RP11-206L10.9", "ENST00000269305.9", f"{TP53}.x", "H3.3", f"{TP53}.1.2")),
    ],
)
def test_only_versions_of_gene_ids_are_removed(name, plain):
    assert without_versions([name]).tolist() == [plain]


def test_targets_are_found_with_or_without_versions():
    groups = make_cells(perturbation=[TP53, f"{MYC}.2", "A", "ctrl"], control="ctrl").groups
    found = dict(
        zip(groups.labels["perturbation"], target_genes(groups, np.array([f"{MYC}.7", f"{TP53}.1"])), strict=True)
    )
    assert found == {TP53: 1, f"{MYC}.2": 0, "A": -1, "ctrl": -1}


def test_an_exact_name_comes_first():
    groups = make_cells(perturbation=[f"{TP53}.2"], control=None).groups
    assert target_genes(groups, np.array([f"{TP53}.1", f"{TP53}.2"])).tolist() == [1]


def test_versions_are_named_as_the_reason_why_screens_share_no_genes():
    frames = [pd.DataFrame(index=names) for names in ([TP53, MYC], [f"{TP53}.1", f"{MYC}.3"])]
    with pytest.raises(SourceFormatError, match="They differ in the versions of Ensembl ids"):
        align_genes(frames, ["a", "b"], "inner")
    with pytest.raises(SourceFormatError, match="Use the same identifiers"):
        align_genes([frames[0], pd.DataFrame(index=["TP53"])], ["a", "b"], "inner")
