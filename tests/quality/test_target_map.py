"""Guides and drugs are judged by the gene that they target."""

from types import SimpleNamespace

import anndata
import numpy as np
import pytest

import lazypert as lp
from lazypert.errors import ColumnNotFoundError, ConfigError
from lazypert.quality.target_map import read_targets, targets_of_labels
from lazypert.screen.roles import Roles
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
    assert read_targets(path) == {label: ((gene,),) for label, gene in TARGETS.items()}
    assert residuals(source, path) == residuals(source, TARGETS)


class TestColumn:
    def source(self, counts, tmp_path, column, **roles):
        obs = {"perturbation": np.repeat(list(LABELS), N).tolist(), "gene": column}
        obs |= {name: ["x"] * len(counts) for name in ("cell_type", "batch")}
        return source_of(make_screen(obs, counts, genes=GENES), tmp_path, **roles)

    def column(self):
        return [TARGETS.get(label) for label in LABELS for _ in range(N)]

    def test_names_targets(self, source, counts, tmp_path):
        column = self.column()
        column[3] = None  # the other cells of its guide say it
        assert residuals(self.source(counts, tmp_path, column), "gene") == residuals(source, TARGETS)

    def test_without_a_value_there_is_no_target(self, counts, tmp_path):
        column = [None if gene == "G2" else "" if gene == "G3" else gene for gene in self.column()]
        _, reasons = residuals(self.source(counts, tmp_path, column), "gene")
        assert reasons["G1_sg1"] == "passed"
        assert reasons["G2_sg1"] == reasons["drug"] == "target gene not measured"

    def test_has_several_genes_of_a_combination(self, source, counts, tmp_path):
        column = ["G3+G1" if gene == "G1" else gene for gene in self.column()]
        targets = TARGETS | {"G1_sg1": ["G1", "G3"], "G1_sg2": ["G1", "G3"]}
        assert residuals(self.source(counts, tmp_path, column, separator="+"), "gene") == residuals(source, targets)

    def test_that_contradicts_itself_or_does_not_exist_is_refused(self, source, counts, tmp_path):
        column = self.column()
        column[N + 1] = "G2"
        with pytest.raises(ConfigError, match=r"^targets: got 'G[12]' and 'G[12]' in 'gene' for cells of 'G1_sg2'"):
            residuals(self.source(counts, tmp_path, column), "gene")
        with pytest.raises(ColumnNotFoundError, match="'gene'"):
            residuals(source, "gene")


def test_other_labels_name_their_own_target_and_an_empty_gene_is_none(source):
    _, reasons = residuals(source, {"G1_sg1": "G1", "drug": ""})
    assert reasons["G1_sg1"] == "passed"
    assert {reasons[label] for label in ("G1_sg2", "G2_sg1", "drug")} == {"target gene not measured"}


def test_names_that_look_like_missing_values_are_kept(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("label,gene\nNA,null\n007,NAN\n")
    assert read_targets(path) == {"NA": (("null",),), "007": (("NAN",),)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label\nA\n", "expected a table with a header"),
        ("", "cannot read"),
        ("label,gene\nA,G1\nA,\n", r"got \['G1', ''\], expected names of genes, or '' alone"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"^targets.*: .*{message}"):
        read_targets(path)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({"A": ["G1", ""]}, r"targets\['A'\]: got \['G1', ''\], expected names of genes, or '' alone for no target"),
        ({"A": {"role": "targeting", "target_features": "TP53"}}, r"targets\['A'\]: got 'TP53', expected target_feat"),
    ],
)
def test_genes_that_mean_nothing_are_refused(targets, message):
    with pytest.raises(ConfigError, match=message):
        lp.KnockdownFilterConfig(targets=targets)


def test_a_combination_has_its_genes_once():
    source = SimpleNamespace(groups=SimpleNamespace(roles=Roles(control_pert="ctrl", separator="+")))
    assert targets_of_labels({"B+A": "G1", "A+B": ["G1"]}, source) == {"A+B": (("G1",),)}
    with pytest.raises(ConfigError, match=r"^targets: got other genes for 'B\+A' than for another label of 'A\+B'"):
        targets_of_labels({"A+B": "G1", "B+A": "G2"}, source)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*none.csv"):
        read_targets(tmp_path / "none.csv")


@pytest.mark.parametrize("targets", [{"A": 1}, {1: "A"}, {"A": ["G1", 2]}, ["A"], 3, "", "targets.xlsx", "a/b"])
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


LEFT = {"both": (0.1, 0.1), "one": (0.1, 1.0), "parts": (0.3, 0.3)}
"""Drugs, and the shares of the expression of G1 and G2 that they leave."""


class TestSeveralGenes:
    """A drug passes if each of its targets does, in the same cells."""

    @pytest.fixture
    def screen(self, tmp_path):
        labels = np.repeat([*LEFT, CONTROL], N)
        rate = np.full((len(labels), 3), 20.0)
        for label, left in LEFT.items():
            rate[labels == label, :2] *= left
        counts = np.random.default_rng(1).poisson(rate)
        obs = {"perturbation": labels.tolist(), "cell_type": ["T"] * len(labels), "batch": ["b"] * len(labels)}
        source = source_of(make_screen(obs, counts, genes=GENES), tmp_path)
        rows = [int(name.removeprefix("cell")) for name in source.obs_names(np.arange(len(labels)))]
        return source, counts[rows].astype(float), labels[rows]

    @pytest.mark.parametrize("kind", ["list", "tuple", "array", "file"])
    def test_equals_the_rule_in_loops(self, screen, tmp_path, kind):
        source, counts, labels = screen
        genes = {"list": ["G1", "G2"], "tuple": ("G1", "G2"), "array": np.array(["G1", "G2"])}.get(kind)
        targets = dict.fromkeys(LEFT, genes)
        if kind == "file":
            targets = tmp_path / "targets.csv"
            targets.write_text("drug,gene\n" + "".join(f"{label},{gene}\n" for gene in ("G1", "G2") for label in LEFT))
        limits = {"residual_expression": 0.4, "cell_residual_expression": 0.5, "min_cells": 5}
        result = lp.OnTargetKnockdownFilter(lp.KnockdownFilterConfig(targets=targets, **limits)).run(source)
        controls, expected = counts[labels == CONTROL].mean(axis=0), labels == CONTROL
        passed = {}
        for label in LEFT:
            cells = np.flatnonzero(labels == label)
            ratios = counts[np.ix_(cells, [0, 1])] / controls[:2]
            kept = cells[(ratios < 0.5).all(axis=1)]
            passed[label] = bool((ratios.mean(axis=0) < 0.4).all()) and len(kept) >= 5
            expected[kept] = passed[label]
        assert passed == {"both": True, "one": False, "parts": True}
        np.testing.assert_array_equal(result.mask, expected)
        table = result.table.set_index("perturbation")
        assert table["passed"].to_dict() == passed
        assert table.loc["one", "reason"].startswith("G2: residual expression too high")

    def test_a_part_of_a_combination_may_have_several(self, tmp_path):
        counts = np.array([[0, 1, 1], [0, 1, 9], [10, 10, 10]], dtype=float)
        obs = {"perturbation": ["g+d", "h+d", CONTROL], "cell_type": ["T"] * 3, "batch": ["b"] * 3}
        source = source_of(make_screen(obs, counts, genes=GENES), tmp_path, separator="+")
        config = lp.KnockdownFilterConfig(targets={"g": "G1", "h": "G1", "d": ["G2", "G3"]}, min_cells=1)
        table = lp.OnTargetKnockdownFilter(config).run(source).table.set_index("perturbation")
        assert table["passed"].to_dict() == {"d+g": True, "d+h": False}
        assert table.loc["d+h", "reason"] == "G3: residual expression too high (0.900, must be below 0.3)"


ENSEMBL = {"G1": "ENSG00000000001", "G2": "ENSG00000000002", "G3": "ENSG00000000003"}


@pytest.fixture(scope="module", params=["", ".7"], ids=["ids", "ids with versions"])
def by_ensembl(request, counts, tmp_path_factory):
    obs = {"perturbation": np.repeat(list(LABELS), N).tolist()}
    obs |= {name: ["x"] * len(counts) for name in ("cell_type", "batch")}
    ids = [f"{gene}{request.param}" for gene in ENSEMBL.values()]
    adata = make_screen(obs, counts, genes=ids, var={"feature_name": GENES})
    return source_of(adata, tmp_path_factory.mktemp("ensembl"))


class TestNamesOfGenes:
    """Genes that are given for labels are found as Ensembl ids or as symbols, in a var column or in the var index."""

    @pytest.mark.parametrize("var_gene_col", [None, "feature_name"])
    def test_ensembl_ids(self, by_ensembl, source, var_gene_col):
        targets = {label: ENSEMBL[gene] for label, gene in TARGETS.items()}
        config = lp.KnockdownFilterConfig(targets=targets, min_cells=1, var_gene_col=var_gene_col)
        table = lp.OnTargetKnockdownFilter(config).run(by_ensembl).table.set_index("perturbation")
        assert table["residual_expression"].to_dict() == pytest.approx(residuals(source, TARGETS)[0])

    def test_symbols(self, by_ensembl, source):
        config = lp.KnockdownFilterConfig(targets=TARGETS, min_cells=1, var_gene_col="feature_name")
        table = lp.OnTargetKnockdownFilter(config).run(by_ensembl).table.set_index("perturbation")
        assert table["residual_expression"].to_dict() == pytest.approx(residuals(source, TARGETS)[0])
        with pytest.raises(ConfigError, match=r"0 of 4 targets are in the var index.*use var_gene_col='feature_name'"):
            lp.OnTargetKnockdownFilter(lp.KnockdownFilterConfig(targets=TARGETS)).run(by_ensembl)


def perturbations(key="derived_features"):
    """``uns["genetic_perturbations"]`` of a file in CELLxGENE's schema, for the labels above."""
    found = {
        label: {"role": "targeting", "protospacer_sequence": "ACGT", key: {ENSEMBL[gene]: gene}}
        for label, gene in TARGETS.items()
    }
    return found | {CONTROL: {"role": "control", "protospacer_sequence": "TTTT"}}


class TestGeneticPerturbations:
    @pytest.mark.parametrize("key", ["derived_features", "target_features"])
    def test_ids_or_symbols_are_found(self, source, key):
        assert residuals(source, perturbations(key)) == residuals(source, TARGETS)  # this var index has symbols
        assert read_targets(perturbations(key))["drug"] == ((ENSEMBL["G3"], "G3"),)

    def test_what_an_h5ad_file_holds(self, source, counts, tmp_path):
        obs = {"perturbation": np.repeat(list(LABELS), N).tolist()}
        adata = make_screen(obs, counts, genes=list(ENSEMBL.values()))
        adata.uns["genetic_perturbations"] = perturbations()
        adata.write_h5ad(tmp_path / "s.h5ad")
        stored = anndata.read_h5ad(tmp_path / "s.h5ad").uns["genetic_perturbations"]
        by_id = source_of(adata, tmp_path, name="other", cell_type_col=None, batch_col=None)
        assert residuals(by_id, stored)[0] == pytest.approx(residuals(source, TARGETS)[0])

    def test_several_ids_are_a_combination(self, tmp_path):
        obs = {"perturbation": ["G1_sg1 || G2_sg1", "G1_sg1", CONTROL]}
        counts = np.array([[1.0, 2, 9], [1, 9, 9], [10, 10, 10]])
        adata = make_screen(obs, counts, genes=list(ENSEMBL.values()))
        source = source_of(adata, tmp_path, separator=" || ", cell_type_col=None, batch_col=None)
        found, reasons = residuals(source, perturbations())
        assert set(reasons.values()) == {"passed"}
        assert found == {"G1_sg1": pytest.approx(0.1), "G1_sg1 || G2_sg1": pytest.approx(0.2)}

    def test_entries_without_genes(self, source):
        some = perturbations()
        del some["drug"]["derived_features"]
        assert residuals(source, some)[1]["drug"] == "target gene not measured"
        with pytest.raises(ConfigError, match=r"targets: got 4 targeting entries without target_features"):
            lp.KnockdownFilterConfig(targets=perturbations("other"))
        with pytest.raises(ConfigError, match=r"targets\['A'\]\['role'\]: got None, expected 'targeting' or 'control'"):
            lp.KnockdownFilterConfig(targets={"A": {"x": 1}})
