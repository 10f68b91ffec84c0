"""Guides and drugs are judged by the gene that they target."""

import numpy as np
import pytest

import lazypert as lp
from lazypert.errors import ConfigError
from lazypert.quality.target_map import read_targets
from tests.support.screens import CONTROL, make_screen, source_of

N = 40
GENES = ["G1", "G2", "G3"]
LABELS = {"G1_sg1": 0.0, "G1_sg2": 0.4, "G2_sg1": 0.1, "drug": 1.0, CONTROL: 1.0}
"""Labels, and the share of their target's expression that is left."""
TARGETS = {"G1_sg1": "G1", "G1_sg2": "G1", "G2_sg1": "G2", "drug": "G3"}


@pytest.fixture(scope="module")
def counts():
    rng = np.random.default_rng(0)
    counts = rng.poisson(20.0, (N * len(LABELS), len(GENES))).astype(float)
    for i, (label, left) in enumerate(LABELS.items()):
        if label in TARGETS:
            counts[i * N : (i + 1) * N, GENES.index(TARGETS[label])] = rng.poisson(20.0 * left, N)
    return counts


@pytest.fixture(scope="module")
def source(counts, tmp_path_factory):
    obs = {"perturbation": np.repeat(list(LABELS), N).tolist()}
    obs |= {name: ["x"] * len(counts) for name in ("cell_type", "batch")}
    return source_of(make_screen(obs, counts, genes=GENES), tmp_path_factory.mktemp("targets"))


def residuals(source, targets):
    config = lp.KnockdownFilterConfig(targets=targets, min_cells=1)
    table = lp.OnTargetKnockdownFilter(config).run(source).table.set_index("perturbation")
    return table["residual_expression"].to_dict(), table["reason"].to_dict()


def test_each_label_is_judged_by_its_gene(source, counts):
    found, reasons = residuals(source, TARGETS)
    controls = counts[-N:].mean(axis=0)
    for i, label in enumerate(TARGETS):
        gene = GENES.index(TARGETS[label])
        assert found[label] == pytest.approx(counts[i * N : (i + 1) * N, gene].mean() / controls[gene])
    assert [label for label, reason in reasons.items() if reason == "passed"] == ["G1_sg1", "G2_sg1"]


@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ","), (".tsv", "\t")])
def test_files_name_targets(source, tmp_path, suffix, separator):
    path = tmp_path / f"targets{suffix}"
    lines = [("guide", "gene", "note"), *((label, gene, "NA") for label, gene in TARGETS.items())]
    path.write_text("".join(separator.join(line) + "\n" for line in lines))
    assert read_targets(path) == TARGETS
    assert residuals(source, path) == residuals(source, TARGETS)


def test_other_labels_name_their_own_target_and_an_empty_gene_is_none(source):
    _, reasons = residuals(source, {"G1_sg1": "G1", "drug": ""})
    assert reasons["G1_sg1"] == "passed"
    assert {reasons[label] for label in ("G1_sg2", "G2_sg1", "drug")} == {"target gene not measured"}


def test_names_that_look_like_missing_values_are_kept(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("label,gene\nNA,null\n007,NAN\n")
    assert read_targets(path) == {"NA": "null", "007": "NAN"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,gene\nA,G1\nA,G2\n", "got 'G1' and 'G2' for 'A' in"),
        ("label\nA\n", "expected a table with a header"),
        ("", "cannot read"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"^targets: .*{message}"):
        read_targets(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*none.csv"):
        read_targets(tmp_path / "none.csv")


@pytest.mark.parametrize("targets", [{"A": 1}, {1: "A"}, ["A"], 3, "targets.xlsx"])
def test_options_that_are_no_targets_are_refused(targets):
    with pytest.raises(ConfigError, match=r"^targets: got"):
        lp.KnockdownFilterConfig(targets=targets)


def test_labels_with_and_without_the_version_of_one_gene_share_it(tmp_path):
    gene = "ENSG00000141510"
    obs = {"perturbation": [gene, f"{gene}.3", CONTROL] * 5, "cell_type": ["T"] * 15, "batch": ["b"] * 15}
    counts = np.tile([[1.0], [2.0], [10.0]], (5, 1))
    source = source_of(make_screen(obs, counts, genes=[f"{gene}.3"]), tmp_path)
    expected = {gene: pytest.approx(0.1), f"{gene}.3": pytest.approx(0.2)}
    for match in ("all", "batch"):
        config = lp.KnockdownFilterConfig(min_cells=1, control_match=match)
        table = lp.OnTargetKnockdownFilter(config).run(source).table.set_index("perturbation")
        assert table["residual_expression"].to_dict() == expected
