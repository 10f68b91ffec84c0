"""Pipelines with control policies, with splits that were made elsewhere, and over selections of a Dataset."""

from typing import ClassVar

import numpy as np
import pytest

import lazypert as lp
from lazypert import PerturbationPipeline, PerturbationPipelineConfig
from lazypert.errors import ConfigError
from lazypert.splits.names import SPLITS
from tests.support.screens import CONTROL, make_screen, write_screen


def setup(reference, **options):
    return PerturbationPipeline(PerturbationPipelineConfig(**options)).setup(reference.store)


class TestControls:
    """Policies for controls, in a few-shot pipeline, whose controls all train."""

    @pytest.fixture
    def results(self, reference):
        options = {"split_mode": "fewshot", "held_out_perturbations": ("BRCA1",)}
        return {policy: setup(reference, controls=policy, **options) for policy in ("split", "train", "disjoint")}

    def rows(self, loader, field):
        return {int(row) for batch in loader for row in np.asarray(getattr(batch, field)).ravel()}

    def test_disjoint_splits_share_no_control(self, results):
        options = {"sentence_size": 8, "sentences_per_batch": 4, "n_basal_samples": 20, "to": "numpy"}
        served = {
            policy: [self.rows(result.loader(name, **options), "control_row") for name in SPLITS]
            for policy, result in results.items()
        }
        assert not set.intersection(*served["disjoint"][:2]) | set.intersection(*served["disjoint"][1:])
        assert set(served["disjoint"][0]) <= set(np.asarray(results["disjoint"].train_indices).tolist())
        for policy in ("split", "train"):
            assert served[policy][2] <= set(np.asarray(results[policy].train_indices).tolist())

    @pytest.mark.parametrize(("delivered", "expected"), [(None, 0), (True, 150), (False, 0)])
    def test_control_cells_are_delivered_with_a_split_when_asked(self, results, delivered, expected):
        loader = results["split"].loader("test", sentence_size=8, control_sentences=delivered, to="numpy")
        rows = {int(row) for batch in loader for row in batch.row[batch.is_control & ~batch.is_padding]}
        assert len(rows) == expected

    def test_fixed_pairs_are_those_of_the_control_mapping(self, results):
        for result in results.values():
            mapped = dict(zip(np.flatnonzero(~result.source.get_control_mask()), result.control_mapping, strict=True))
            for batch in result.loader("valid", sentence_size=8, fixed_pairs=True, control_sentences=False, to="numpy"):
                for row, controls in zip(batch.row.tolist(), batch.control_row.tolist(), strict=True):
                    assert controls == mapped[row].tolist()

    def test_a_policy_must_be_known(self):
        with pytest.raises(ConfigError, match="controls: got 'all'"):
            PerturbationPipelineConfig(controls="all")


class TestSplits:
    HELD_OUT: ClassVar = {"split_mode": "heldout", "by": "cell_type", "test": ("Neuron",), "valid": ("Microglia",)}

    def test_every_mode_is_reached_by_options(self, reference):
        result = setup(reference, **self.HELD_OUT)
        assert [len(result.splits[name]) for name in SPLITS] == [300, 300, 300]
        result = setup(reference, n_folds=3, fold=0, stratify_by=("batch",), exclude_perturbations=("MYC",))
        assert [len(result.splits[name]) for name in SPLITS] == [250, 250, 250]
        result = setup(reference, split_mode="combinations", separator="+", test=("MYC",), valid=("KRAS",))
        assert [len(result.splits[name]) for name in SPLITS] == [600, 150, 150]

    def test_knockdown_and_split_filters_are_different_options(self, reference):
        result = setup(reference, min_cells=1000, min_cells_per_group=51)
        assert sum(len(result.splits[name]) for name in SPLITS) == 150

    def test_a_given_split(self, reference, tmp_path):
        split = lp.open(reference.store).pert.split("heldout", by="cell_type", test=("Neuron",))
        split.save(tmp_path / "split.csv.gz")
        pipeline = PerturbationPipeline(PerturbationPipelineConfig(seed=7))
        for given in (split, tmp_path / "split.csv.gz", str(tmp_path / "split.csv.gz")):
            result = pipeline.setup(reference.store, splits=given)
            assert result.splits == split
            assert result.splits.groups is result.source.groups
            batch = next(iter(result.loader("test", sentence_size=5)))
            assert set(np.asarray(batch.row).tolist()) <= set(split.test_indices)

    def test_a_split_of_files_in_another_order(self, tmp_path):
        screens = [
            make_screen({"perturbation": ["A", "B", CONTROL] * 10, "cell_type": ["T"] * 30, "batch": ["b"] * 30})
            for _ in range(2)
        ]
        paths = [write_screen(s, tmp_path / f"s{i}.h5ad") for i, s in enumerate(screens)]
        pipeline = PerturbationPipeline(PerturbationPipelineConfig(mapping_strategy="random"))
        result = pipeline.setup(paths)
        result.splits.save(tmp_path / "split.csv")
        other = pipeline.setup(paths[::-1], splits=tmp_path / "split.csv")
        assert other.splits == result.splits
        assert other.splits.test_indices[:].tolist() != result.splits.test_indices[:].tolist()
        assert pipeline.setup(paths[::-1], splits=result.splits).splits == result.splits
        with pytest.raises(ConfigError, match=r"cells that the screen lacks, such as .* and the datasets 'all'"):
            pipeline.setup(paths[:1], splits=tmp_path / "split.csv")

    def test_a_given_split_and_a_rule_contradict_each_other(self, reference):
        split = lp.open(reference.store).pert.split()
        pipeline = PerturbationPipeline(PerturbationPipelineConfig(**self.HELD_OUT))
        with pytest.raises(ConfigError, match="split_mode: got 'heldout' together with splits="):
            pipeline.setup(reference.store, splits=split)
        with pytest.raises(ConfigError, match="splits: got 3, expected a SplitResult"):
            PerturbationPipeline(PerturbationPipelineConfig()).setup(reference.store, splits=3)


class TestSelections:
    """Only the selected cells are split, filtered, loaded and used as controls."""

    @pytest.mark.parametrize("strategy", ["random", "batch"])
    def test_loaders_of_a_selection(self, reference, strategy):
        ds = lp.open(reference.store).pert.select(cell_type=["Neuron", "Microglia"])
        ds = ds.isel(cell=np.random.default_rng(0).permutation(600)[:500])
        rows = set(ds.store_row.values.tolist())
        config = PerturbationPipelineConfig(
            mapping_strategy=strategy, enable_knockdown_filter=True, var_gene_col="gene_name"
        )
        result = PerturbationPipeline(config).setup(ds)
        in_splits = [row for name in SPLITS for row in result.splits[name]]
        assert result.splits.groups.n_obs == len(result.source) == 500
        assert 450 < len(in_splits) <= 500
        assert set(in_splits) <= rows
        for name in SPLITS:
            seen = []
            for batch in result.loader(name, sentence_size=4, n_basal_samples=2, shuffle=False):
                real = ~np.asarray(batch.is_padding)
                seen += np.asarray(batch.row)[real].tolist()
                assert set(np.asarray(batch.control_row).ravel().tolist()) <= rows
            assert sorted(seen) == sorted(result.splits[name])
        assert set(result.control_mapping.ravel().tolist()) <= rows

    def test_a_complete_dataset_is_its_store(self, reference):
        pipeline = PerturbationPipeline(PerturbationPipelineConfig())
        assert pipeline.setup(lp.open(reference.store)).splits == pipeline.setup(reference.store).splits

    def test_indexing_covers_the_selection(self, reference):
        ds = lp.open(reference.store).isel(cell=slice(100, 200))
        source = PerturbationPipeline(PerturbationPipelineConfig()).setup(ds).source
        assert [element["pert_code"] for element in source] == source.get_pert_codes()[100:200].tolist()
        assert set(source.get_batch(100)["pert_name"]) == set(ds.perturbation.values)

    def test_several_selections(self, reference):
        ds = lp.open(reference.store)
        parts = [ds.isel(cell=slice(0, 300)), ds.isel(cell=slice(600, 900))]
        result = PerturbationPipeline(PerturbationPipelineConfig(mapping_strategy="random")).setup(parts)
        rows = sorted(row for name in SPLITS for row in result.splits[name])
        assert rows == [*range(300), *range(1500, 1800)]
        names = result.source.obs_names(np.array(rows))
        assert names.tolist() == [*ds.cell_name[:300].values, *ds.cell_name[600:].values]

    def test_selections_that_cannot_be_loaded(self, reference):
        ds, pipeline = lp.open(reference.store), PerturbationPipeline(PerturbationPipelineConfig())
        with pytest.raises(ConfigError, match="ds: got 5 genes, expected all 200 genes"):
            pipeline.setup(ds.isel(gene=slice(5)))
        with pytest.raises(ConfigError, match="more than once"):
            pipeline.setup(ds.isel(cell=[0, 0, 1]))
