"""Batches hold the cells of the plan and their controls, in static shapes."""

import re

import jax
import numpy as np
import pytest

from lazypert import PerturbationPipeline, PerturbationPipelineConfig
from lazypert.design.sentence_plan import SentencePlan
from lazypert.errors import ConfigError
from lazypert.loading.loader import Loader
from tests.support.loaders import FIELDS, loader_of


class TestBatches:
    @pytest.mark.parametrize("split", ["train", "valid", "test"])
    def test_equal_the_rows_of_the_source(self, source, split):
        for batch in loader_of(source, split):
            cells = source.batch(np.asarray(batch.row))
            for name in ("counts", "pert_code", "cell_type_code", "batch_code", "is_control"):
                assert np.array_equal(np.asarray(getattr(batch, name)), cells[name]), name
            controls = source.batch(np.asarray(batch.control_row).ravel())
            assert np.array_equal(np.asarray(batch.controls).reshape(-1, 200), controls["counts"])
            assert controls["is_control"].all()
            for name in ("cell_type_code", "batch_code"):
                assert (controls[name] == np.repeat(cells[name], 2)).all()

    @pytest.mark.parametrize("shuffle", [True, False], ids=["train", "evaluation"])
    @pytest.mark.parametrize("split", ["train", "valid", "test"])
    def test_visit_each_cell_of_the_split_once(self, source, split, shuffle):
        loader = loader_of(source, split, shuffle=shuffle, sentences_per_batch=9)
        assert loader.plan.n_sentences % 9  # so the last batch needs padding
        rows = [int(r) for b in loader for r, p in zip(b.row, b.is_padding, strict=True) if not p]
        assert sorted(rows) == sorted(loader.rows)

    def test_have_static_shapes(self, source):
        loader = loader_of(source, "valid", sentence_size=9, sentences_per_batch=5)
        batches = list(loader)
        assert len(batches) == len(loader) > 1
        assert loader.plan.n_sentences % 5  # the last batch has too few sentences of its own
        specs = {tuple((getattr(b, f).shape, str(getattr(b, f).dtype)) for f in FIELDS) for b in batches}
        assert len(specs) == 1
        shapes = dict(zip(FIELDS, next(iter(specs)), strict=True))
        assert shapes["counts"] == ((45, 200), "float32")
        assert shapes["controls"] == ((45, 2, 200), "float32")
        assert shapes["control_row"] == ((45, 2), "int32")
        assert shapes["row"] == shapes["pert_code"] == ((45,), "int32")
        assert shapes["is_padding"] == ((45,), "bool")

    def test_consist_of_sentences_of_one_group(self, source):
        for batch in loader_of(source):
            for name in ("pert_code", "cell_type_code", "batch_code"):
                sentences = np.asarray(getattr(batch, name)).reshape(-1, batch.sentence_size)
                assert (sentences == sentences[:, :1]).all()

    def test_compile_once(self, source):
        traced = []

        @jax.jit
        def step(batch):
            traced.append(batch.sentence_size)
            return (batch.counts.sum() - batch.controls.sum()) * batch.sentence_size

        for epoch in range(2):
            loader = loader_of(source)
            loader.set_epoch(epoch)
            results = [step(batch) for batch in loader]
        assert traced == [7]
        assert len(results) == len(loader)

    def test_are_pytrees(self, source):
        batch = next(iter(loader_of(source)))
        doubled = jax.tree.map(lambda leaf: leaf + leaf, batch)
        assert type(doubled) is type(batch)
        assert doubled.sentence_size == batch.sentence_size == 7
        assert (doubled.counts == 2 * batch.counts).all()
        assert len(jax.tree.leaves(batch)) == len(FIELDS)  # optional fields are absent


class TestEpochs:
    def test_differ_and_are_reproducible(self, source):
        loader = loader_of(source)

        def rows(epoch):
            loader.set_epoch(epoch)
            return [(np.asarray(b.row).tolist(), np.asarray(b.control_row).tolist()) for b in loader]

        first, second = rows(0), rows(1)
        assert rows(0) == first
        assert [r for r, _ in first] != [r for r, _ in second]
        controls_in_first, controls_in_second = (
            {row: tuple(c) for r, cs in epoch for row, c in zip(r, cs, strict=True)} for epoch in (first, second)
        )
        assert np.mean([controls_in_first[row] == controls_in_second[row] for row in controls_in_first]) < 0.2

    def test_draw_controls_by_seed_epoch_and_row(self, source):
        """The controls of a cell do not depend on its batch."""
        loader = loader_of(source, sentence_size=7)
        other = loader_of(source, sentence_size=31, sentences_per_batch=1)
        found = [
            {
                int(r): tuple(c.tolist())
                for b in batches
                for r, c, is_padding in zip(b.row.tolist(), np.asarray(b.control_row), b.is_padding, strict=True)
                if not is_padding
            }
            for batches in (loader, other)
        ]
        assert found[0] == found[1]

    def test_a_single_batch_can_be_read(self, source):
        loader = loader_of(source)
        for step, batch in enumerate(loader):
            if step in (0, 3):
                single = loader.batch(step, 0)
                for name in FIELDS:
                    assert (getattr(single, name) == getattr(batch, name)).all()

    def test_a_single_batch_must_exist(self, source):
        loader = loader_of(source)
        with pytest.raises(IndexError, match=f"step: got {len(loader)}, expected 0 to {len(loader) - 1}"):
            loader.batch(len(loader), 0)

    def test_negative_epochs_are_rejected(self, source):
        with pytest.raises(ConfigError, match="epoch: got -1"):
            loader_of(source).set_epoch(-1)


def test_an_empty_split_has_no_batches(source):
    loader = loader_of(source, "valid")
    empty = SentencePlan.from_rows(loader.plan.config, source.groups, source.groups.rows(np.zeros(0, dtype=int)))
    no_cells = Loader(source, source.groups.rows(np.zeros(0, dtype=int)), empty, loader.pools)
    assert (list(no_cells), len(no_cells)) == ([], 0)


def test_the_config_must_be_a_loader_config(source):
    loader = loader_of(source)
    with pytest.raises(ConfigError, match=r"config: got \{\}, expected a LoaderConfig or None"):
        Loader(source, loader.rows, loader.plan, loader.pools, {})


def test_repr_is_short(source):
    genes = list(source.var.index[:100])
    text = repr(loader_of(source, layout="csr", genes=genes))
    assert text.startswith("Loader(")
    assert re.search(r"batches of 4 x 7 cells, \d+% padding, 100 features, LoaderConfig\(", text)
    assert "layout='csr'" in text
    assert len(text) < 300
    iterator = iter(loader_of(source))
    next(iterator)
    assert repr(iterator).startswith("LoaderIterator(epoch 0, step 1 of Loader(")


class TestControls:
    def test_can_be_omitted(self, source):
        for batch in loader_of(source, n_basal_samples=0):
            assert batch.controls is None
            assert batch.control_row is None

    @pytest.mark.parametrize("quality_control", [False, True], ids=["all cells", "cells that pass"])
    @pytest.mark.parametrize("strategy", ["random", "batch"])
    def test_fixed_pairs_equal_the_control_mapping(self, reference, strategy, quality_control):
        config = PerturbationPipelineConfig(
            split_mode="fewshot", held_out_perturbations=("MYC",), mapping_strategy=strategy, n_basal_samples=2,
            sentence_size=8, enable_knockdown_filter=quality_control, var_gene_col="gene_name",
        )  # fmt: skip
        result = PerturbationPipeline(config).setup(reference.store)
        groups = result.source.groups
        mapped = np.sort(groups.rows((groups.ids >= 0) & ~groups.is_control)[:])
        expected = dict(zip(mapped.tolist(), result.control_mapping.tolist(), strict=True))
        for split in ("train", "valid", "test"):
            loader = result.loader(split, fixed_pairs=True)
            for epoch in range(2):
                loader.set_epoch(epoch)
                for batch in loader:
                    is_mapped = ~np.asarray(batch.is_control)
                    rows, controls = np.asarray(batch.row)[is_mapped], np.asarray(batch.control_row)[is_mapped]
                    assert all(
                        expected[row] == found for row, found in zip(rows.tolist(), controls.tolist(), strict=True)
                    )

    def test_are_all_drawn_within_a_few_epochs(self, source):
        loader = loader_of(source, by_batch=False)
        seen = set()
        for epoch in range(12):
            loader.set_epoch(epoch)
            for batch in loader:
                seen.update(np.asarray(batch.control_row).ravel().tolist())
        assert seen == set(loader.pools.controls)


class TestThroughThePipeline:
    """What the pipeline adds: defaults, split names, QC, and errors for misspelt options."""

    @pytest.fixture
    def result(self, reference):
        config = PerturbationPipelineConfig(
            split_mode="fewshot",
            held_out_perturbations=("BRCA1", "TP53"),
            mapping_strategy="batch",
            sentence_size=16,
            sentences_per_batch=2,
            n_basal_samples=3,
            enable_knockdown_filter=True,
            var_gene_col="gene_name",
            min_cells=5,
        )
        return PerturbationPipeline(config).setup(reference.store)

    @pytest.mark.parametrize("split", ["train", "valid", "val", "test"])
    def test_visits_the_cells_that_pass_qc(self, result, split):
        seen = []
        for batch in result.loader(split):
            assert batch.counts.shape == (32, 200)
            assert batch.controls.shape == (32, 3, 200)
            seen += np.asarray(batch.row)[~np.asarray(batch.is_padding)].tolist()
        rows = result.splits[split]
        assert sorted(seen) == sorted(rows)
        assert result.filter_mask[seen].all()

    def test_options_override_the_config(self, result):
        batch = next(iter(result.loader("train", sentence_size=4, sentences_per_batch=1, n_basal_samples=1)))
        assert (batch.counts.shape, batch.controls.shape, batch.sentence_size) == ((4, 200), (4, 1, 200), 4)
        assert len(result.loader("train", sentence_size=500, sentences_per_batch=5, drop_last=True)) == 24 // 5
        one, other = (next(iter(result.loader("train", seed=seed))) for seed in (1, 2))
        assert (one.row != other.row).any()

    def test_evaluation_visits_groups_in_order(self, result):
        def rows(split):
            return [np.asarray(b.row).tolist() for b in result.loader(split)]

        assert rows("valid") == rows("valid")
        groups = result.source.get_group_codes()
        visited = [int(groups[r]) for batch in rows("test") for r in batch]
        n = len(result.test_indices)
        assert visited[: n // 2] == sorted(visited[: n // 2])
        shuffled = [np.asarray(b.row).tolist() for b in result.loader("test", shuffle=True)]
        assert shuffled != rows("test")

    def test_unknown_splits_are_rejected(self, result):
        with pytest.raises(ConfigError, match="split: got 'training'"):
            result.loader("training")

    @pytest.mark.parametrize(
        ("misspelt", "meant"),
        [("sentence_sise", "sentence_size"), ("lay_out", "layout"), ("targetsum", "target_sum"), ("weight", "weights")],
    )
    def test_a_misspelt_option_names_the_near_match(self, result, misspelt, meant):
        with pytest.raises(ConfigError, match=f"^{misspelt}: unknown option. Did you mean '{meant}'"):
            result.loader("train", **{misspelt: 1})

    def test_n_basal_samples_defaults_to_that_of_the_pipeline(self, result):
        assert result.loader("train").config.n_basal_samples == 3
        assert result.loader("train", n_basal_samples=None).config.n_basal_samples == 3
        assert result.loader("train", n_basal_samples=0).config.n_basal_samples == 0
