"""Reports on splits: what each holds, and cases of leaks by name."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lazypert as lp
from lazypert.errors import ConfigError
from lazypert.screen.rows import Rows
from lazypert.splits.names import SPLITS
from lazypert.splits.report import SplitReport
from lazypert.store.matrix import Matrix
from tests.support.reports import Named, findings, gene_rich_screen, screens, split_by_hand, with_counts
from tests.support.screens import CONTROL, make_cells, random_cells, source_of

COLUMNS = ["cells", "groups", "perturbations", "cell_types", "batches", "datasets", "control_cells"]


def random(source, **options):
    return lp.RandomSplitter(lp.RandomSplitterConfig(**options)).split(source)


def fewshot(source, *held_out):
    return lp.FewShotSplitter(lp.FewShotSplitterConfig(held_out_perturbations=held_out)).split(source)


def counts_of(frame, control=CONTROL):
    """What a split of these cells holds."""
    batches = frame[frame["batch"].notna()]
    groups = frame[["cell_type", "perturbation"]].dropna().drop_duplicates()
    return {
        "cells": len(frame),
        "groups": len(groups),
        "perturbations": len(set(frame["perturbation"].dropna()) - {control}),
        "cell_types": frame["cell_type"].nunique(),
        "batches": len(batches[["dataset", "batch"]].drop_duplicates()),
        "datasets": frame["dataset"].nunique(),
        "control_cells": int((frame["perturbation"] == control).sum()),
    }


@given(st.integers(1, 80), st.integers(0, 10**6), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_counts_are_those_of_the_labels_of_single_cells(n, seed, n_datasets):
    cells = random_cells(n, seed, n_datasets=n_datasets, missing=0.1)
    if CONTROL not in cells.groups.labels["perturbation"]:
        return
    split = np.random.default_rng(seed).choice([0, 1, 2, -1], n)
    counts = split_by_hand(cells.groups, split).report().counts
    assert list(counts.columns) == COLUMNS
    assert list(counts.index) == [*SPLITS, "no split"]
    for number, name in enumerate([*SPLITS, "no split"]):
        rows = split == (number if name in SPLITS else -1)
        assert counts.loc[name].to_dict() == counts_of(cells.frame[rows])


def test_cells_of_overlapping_splits_are_in_some_split():
    groups = make_cells(perturbation=["A"] * 10, control=None).groups
    result = lp.SplitResult(Rows([0], [6]), Rows([2], [3]), Rows([4], [8]), groups)
    report = result.report()
    assert report.counts["cells"].tolist() == [6, 1, 4, 2]
    assert findings(report, level="error") == {
        ("same_row", "error", "train, valid"): 2,
        ("same_row", "error", "train, test"): 4,
    }


class TestCases:
    def test_a_screen_listed_twice_in_one_pipeline(self, tmp_path):
        adata = gene_rich_screen()
        source = screens(tmp_path, first=adata, second=adata)
        report = random(source, train_frac=0.5, valid_frac=0.2).report(source)
        errors = report.at_level("error")
        assert set(errors["kind"]) == {"same_name_across_datasets"}
        assert list(errors["splits"]) == ["train, valid", "train, test", "valid, test"]
        assert errors["examples"].iloc[0][0].endswith("in first and second")
        twice = report.leaks[report.leaks["kind"] == "same_name_across_datasets"]
        assert twice["n_cells"].sum() == source.n_rows
        assert findings(random(source, train_frac=0.5, valid_frac=0.2).report(), level="error") == findings(
            report, level="error"
        )

    @pytest.mark.parametrize("change", ["names", "genes", "float64", "both files"])
    def test_duplicates_under_other_names(self, tmp_path, change):
        adata = gene_rich_screen()
        names = [f"renamed{i}" for i in range(60)]
        counts = adata.X.toarray()
        if change == "genes":
            order = np.random.default_rng(0).permutation(60)
            copy = with_counts(adata, counts[:, order], genes=list(adata.var_names[order]), names=names)
        else:
            copy = with_counts(adata, counts.astype("f8" if change == "float64" else "u2"), names=names)
        source = screens(tmp_path, a=adata, b=copy)
        splits = split_by_hand(source.groups, [0] * 60 + [2] * 60)
        assert findings(splits.report(source), level="error") == {}
        report = splits.report(source, content=True)
        assert findings(report, level="error") == {("same_content", "error", "train, test"): 120}
        (example, *_) = report.at_level("error")["examples"].iloc[0]
        one, other = example.split(" = ")
        assert (one.removeprefix("0-cell"), other) == (other.removeprefix("renamed"), other)

    def test_a_training_combination_with_a_held_out_perturbation(self):
        labels = np.repeat([CONTROL, "A", "B", "A+B"], 20)
        cells = make_cells(perturbation=labels)
        splits = fewshot(cells, "A")
        assert findings(splits.report(), kind="combination_with_held_out_perturbation") == {}
        found = findings(splits.report(separator="+"), kind="combination_with_held_out_perturbation")
        assert list(found) == [
            ("combination_with_held_out_perturbation", "warning", "train, test"),
            ("combination_with_held_out_perturbation", "warning", "valid, test"),
        ]
        assert sum(found.values()) == 20

    def test_a_batch_in_both_splits_is_a_note(self):
        cells = make_cells(perturbation=["A"] * 8, batch=["b1", "b2"] * 4, control=None)
        report = split_by_hand(cells.groups, [0, 0, 0, -1, 2, -1, 2, -1]).report()
        row = report.leaks[report.leaks["kind"] == "shared_batch"].iloc[0]
        assert (row.level, row.splits, row.n_cells, row.n_labels, row.examples) == (
            "note",
            "train, test",
            4,
            1,
            ("b1",),
        )

    def test_few_shot_controls_serve_other_splits(self, reference):
        report = fewshot(reference.source, "TP53").report()
        assert findings(report, level="warning") == {
            ("shared_controls", "warning", "train, valid"): 150,
            ("shared_controls", "warning", "train, test"): 150,
            ("shared_controls", "warning", "valid, test"): 150,
        }
        assert report.leaks["examples"].iloc[0] == ("Astrocyte", "Microglia", "Neuron")

    def test_a_clean_split(self, reference):
        splitter = lp.ZeroShotSplitter(lp.ZeroShotSplitterConfig(held_out_cell_types=("Neuron",)))
        report = splitter.split(reference.source).report(reference.source, content=True)
        assert set(report.leaks["level"]) == {"note"}
        assert findings(report, kind="shared_cell_type") == {("shared_cell_type", "note", "train, valid"): 600}

    def test_splits_that_share_nothing(self):
        cells = make_cells(
            perturbation=["A", "B", "C"], cell_type=["T", "U", "V"], batch=["b1", "b2", "b3"], control=None
        )
        report = split_by_hand(cells.groups, [0, 1, 2]).report()
        assert len(report.leaks) == 0
        assert "No findings." in repr(report)


class TestReading:
    @pytest.fixture
    def unreadable(self, monkeypatch):
        def fail(*args, **kwargs):
            raise AssertionError("a matrix was read")

        monkeypatch.setattr(Matrix, "locate", fail)

    def test_no_matrix_is_read_without_content(self, reference, unreadable):
        splits = random(reference.source)
        splits.report()
        splits.report(reference.source, separator=None)
        with pytest.raises(AssertionError, match="a matrix was read"):
            splits.report(reference.source, content=True)

    def test_names_are_read_only_where_hashes_are_equal(self, reference, monkeypatch):
        names = Named(reference.source.obs_names(np.arange(900)))
        random(reference.source).report(names)
        assert names.n_read <= 200

    def test_the_order_of_the_store_does_not_matter(self, reference, tmp_path):
        in_file_order = source_of(reference.adata.copy(), tmp_path, order="source", control_pert=CONTROL)
        one, other = (random(source).report(source, content=True) for source in (reference.source, in_file_order))
        assert one.to_json() == other.to_json()

    def test_cells_with_too_few_genes_are_counted(self, tmp_path):
        adata = gene_rich_screen()
        counts = adata.X.toarray()
        counts[::3, 15:] = 0
        poor = with_counts(adata, counts)
        found = []
        for order in ("source", "grouped"):
            source = source_of(poor, tmp_path / order, order=order, control_pert=CONTROL)
            report = random(source).report(source, content=True)
            found.append(report.leaks[report.leaks["kind"] == "too_few_genes"].iloc[0].to_dict())
        assert found[0] == found[1]
        assert (found[0]["level"], found[0]["splits"], found[0]["n_cells"]) == ("note", "train, valid, test", 20)
        assert set(found[0]["examples"]) <= set(adata.obs_names[::3])


class TestArguments:
    def test_content_needs_a_source(self, reference):
        with pytest.raises(ConfigError, match=r"content: got True with source=None, expected .* Pass"):
            random(reference.source).report(content=True)

    def test_another_source_is_refused(self, reference):
        splits = random(reference.source)
        with pytest.raises(ConfigError, match=r"source: got one with 899 cells, expected .* has a row 899"):
            splits.report(Named(["a"] * 899))
        with pytest.raises(ConfigError, match="source: got one with 10 cells, expected the source that was split"):
            splits.report(Named(["a"] * 10))
        with pytest.raises(ConfigError, match="source: got one with other cells"):
            splits.report(Named([f"other{i}" for i in range(900)]))


class TestValue:
    def test_it_prints_two_tables(self, reference):
        text = repr(fewshot(reference.source, "TP53").report())
        lines = text.splitlines()
        assert lines[0] == "SplitReport"
        assert lines[2].split() == COLUMNS
        assert ["train", "683", "15", "4", "3", "2", "1", "150"] in [line.split() for line in lines]
        assert "0 errors, 3 warnings and 7 notes:" in lines
        assert max(map(len, lines)) < 120

    def test_many_findings_are_cut(self, tmp_path):
        adata = gene_rich_screen()
        source = screens(tmp_path, first=adata, second=adata)
        report = random(source, train_frac=0.5, valid_frac=0.2).report()
        assert len(report.leaks) == 18
        shown = SplitReport(report.counts, report.leaks.iloc[np.arange(30) % 18])
        assert "... 10 more in report.leaks" in repr(shown)

    def test_json_holds_all_of_it(self, reference):
        report = fewshot(reference.source, "TP53").report(reference.source)
        plain = json.loads(json.dumps(report.to_json()))
        assert plain["counts"]["test"]["cells"] == 150
        assert [finding["kind"] for finding in plain["leaks"]] == list(report.leaks["kind"])
        assert plain["leaks"][0]["examples"] == ["Astrocyte", "Microglia", "Neuron"]
        assert set(plain["leaks"][0]) == set(report.leaks.columns)

    def test_it_is_frozen(self, reference):
        with pytest.raises(AttributeError):
            random(reference.source).report().counts = SimpleNamespace()
