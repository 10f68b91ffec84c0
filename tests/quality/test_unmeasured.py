"""A screen in which no target is measured raises an error that says what to do."""

import numpy as np
import pytest

from lazypert import KnockdownFilterConfig, OnTargetKnockdownFilter
from lazypert.errors import ConfigError
from lazypert.quality.unmeasured import gene_of_guide
from tests.support.screens import CONTROL, make_screen, source_of


def error_of(folder, labels, *, genes=("G1", "G2"), var=None, var_gene_col=None):
    """The message about perturbations of these labels."""
    perturbation = [*labels, CONTROL]
    obs = {"perturbation": perturbation, "cell_type": ["T"] * len(perturbation), "batch": ["b"] * len(perturbation)}
    source = source_of(make_screen(obs, genes=list(genes), var=var), folder)
    with pytest.raises(ConfigError) as caught:
        OnTargetKnockdownFilter(KnockdownFilterConfig(var_gene_col=var_gene_col)).run(source)
    return str(caught.value)


@pytest.mark.parametrize(
    ("labels", "advice"),
    [
        (["G1+ctrl", "G2+ctrl"], "The + in labels such as 'G1+ctrl' suggests combinations"),
        (["ctrl+G1", "G1+G2"], "use separator='+'."),
        (["G1_sg1", "G2_sg1"], "Labels such as 'G1_sg1' suggest guides of gene 'G1'"),
        (["sgG1-2", "sgG2-1"], "Labels such as 'sgG1-2' suggest guides of gene 'G1'"),
        (["G1 ", " G2"], "Labels such as ' G2' have blanks around the name of a gene"),
        (["g1", "g2"], "Label 'g1' and gene 'G1' differ in upper and lower case"),
        (["drug a", "drug b"], "Labels are 'drug a', 'drug b'; genes are 'G1', 'G2'."),
    ],
)
def test_labels_that_are_not_genes_are_explained(tmp_path, labels, advice):
    message = error_of(tmp_path, labels)
    assert message.startswith("var_gene_col: got None, but 0 of 2 targets are in the var index (var_names)")
    assert advice in message
    assert message.count("suggest") <= 1


def test_the_column_with_the_genes_is_named(tmp_path):
    var = {"gene_name": ["G1", "G2"], "number": [1, 2], "other": ["G1", "x"]}
    message = error_of(tmp_path, ["G1", "G2"], genes=["ENSG1", "ENSG2"], var=var)
    assert message.endswith("var['gene_name'] has all of them: use var_gene_col='gene_name'.")


def test_the_index_is_named(tmp_path):
    message = error_of(tmp_path, ["G1", "no gene"], var={"id": ["E1", "E2"]}, var_gene_col="id")
    assert "0 of 2 targets are in var['id']" in message
    assert message.endswith("the var index (var_names) has 1 of them: use var_gene_col=None.")


def test_one_measured_target_is_enough_and_blanks_get_a_hint(tmp_path):
    obs = {"perturbation": ["G1", "G2 ", "x", CONTROL], "cell_type": ["T"] * 4, "batch": ["b"] * 4}
    source = source_of(make_screen(obs, np.ones((4, 2)), genes=["G1", "G2"]), tmp_path)
    table = OnTargetKnockdownFilter().run(source).table.set_index("perturbation")
    assert table.loc["G2 ", "reason"] == "target gene not measured (the label 'G2 ' has blanks around the gene 'G2')"
    assert table.loc["x", "reason"] == "target gene not measured"


def test_controls_alone_are_no_error(tmp_path):
    obs = {"perturbation": [CONTROL] * 3, "cell_type": ["T"] * 3, "batch": ["b"] * 3}
    result = OnTargetKnockdownFilter().run(source_of(make_screen(obs), tmp_path))
    assert len(result.table) == 0
    assert result.mask.all()


@pytest.mark.parametrize(
    ("guide", "gene"),
    [
        ("G1_sg1", "G1"),
        ("sgG1-2", "G1"),
        ("TP53.3", "TP53"),
        ("TP53_guide_2", "TP53"),
        ("TP53_g2", "TP53"),
        ("sgTP53", "TP53"),
        ("HLA-A_sg10", "HLA-A"),
        ("TP53", "TP53"),
    ],
)
def test_genes_of_guides(guide, gene):
    assert gene_of_guide(guide) == gene
