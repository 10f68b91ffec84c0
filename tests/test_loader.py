"""Batches are what the plan says, whatever the threads do; shapes never change."""

import gc
import threading

import jax
import numpy as np
import pytest

from lazypert import FewShotSplitter, FewShotSplitterConfig, PerturbationPipeline, PerturbationPipelineConfig
from lazypert.controls import pools_of
from lazypert.downsampling import DownsamplingConfig
from lazypert.errors import ConfigError, LazypertError
from lazypert.loader import Loader
from lazypert.sampler import PerturbationSamplerConfig, SentencePlan

FIELDS = ["counts", "controls", "pert_code", "cell_type_code", "batch_code"]
FIELDS += ["is_control", "is_filler", "row", "control_row"]


def loader_of(
    source,
    split="train",
    *,
    sentence_size=7,
    sentences_per_batch=4,
    n_basal_samples=2,
    shuffle=True,
    by_batch=True,
    **options,
):
    splits = FewShotSplitter(FewShotSplitterConfig(held_out_perturbations=("MYC",))).split(source)
    config = PerturbationSamplerConfig(sentence_size=sentence_size, sentences_per_batch=sentences_per_batch)
    plan = SentencePlan.from_rows(config, source.groups, splits[split], by_batch=by_batch, shuffle=shuffle)
    pools = pools_of(source.groups, by_batch=by_batch, splits=splits, name=split)
    return Loader(source, splits[split], plan, pools, n_basal_samples=n_basal_samples, **options)


def alive():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lazypert-loader")]


@pytest.fixture(scope="module")
def source(reference):
    return reference.source


class TestBatches:
    @pytest.mark.parametrize("split", ["train", "valid", "test"])
    def test_hold_what_the_source_holds(self, source, split):
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
        loader = loader_of(source, split, shuffle=shuffle, sentences_per_batch=11)
        assert loader.plan.n_sentences % 11  # so the last batch is filled up too
        rows = [int(r) for b in loader for r, f in zip(b.row, b.is_filler, strict=True) if not f]
        assert sorted(rows) == sorted(loader.rows)

    def test_have_static_shapes(self, source):
        loader = loader_of(source, "valid", sentence_size=9, sentences_per_batch=5)
        batches = list(loader)
        assert len(batches) == len(loader) > 1
        assert loader.plan.n_sentences % 5  # the last batch is short of sentences
        kinds = {tuple((getattr(b, f).shape, str(getattr(b, f).dtype)) for f in FIELDS) for b in batches}
        assert len(kinds) == 1
        shapes = dict(zip(FIELDS, next(iter(kinds)), strict=True))
        assert shapes["counts"] == ((45, 200), "float32")
        assert shapes["controls"] == ((45, 2, 200), "float32")
        assert shapes["control_row"] == ((45, 2), "int32")
        assert shapes["row"] == shapes["pert_code"] == ((45,), "int32")
        assert shapes["is_filler"] == ((45,), "bool")

    def test_are_sentences_of_one_group(self, source):
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
        assert len(jax.tree.leaves(batch)) == len(FIELDS)  # what was not asked for is not there


class TestEpochs:
    def test_differ_and_can_be_repeated(self, source):
        loader = loader_of(source)

        def rows(epoch):
            loader.set_epoch(epoch)
            return [(np.asarray(b.row).tolist(), np.asarray(b.control_row).tolist()) for b in loader]

        first = rows(0)
        second = rows(1)
        assert rows(0) == first
        assert [r for r, _ in first] != [r for r, _ in second]
        of_first, of_second = (
            {row: tuple(c) for r, cs in epoch for row, c in zip(r, cs, strict=True)} for epoch in (first, second)
        )
        assert np.mean([of_first[row] == of_second[row] for row in of_first]) < 0.2

    def test_draw_the_same_controls_as_the_mapping_rule(self, source):
        """A cell's controls are a function of (seed, epoch, row), not of its batch."""
        loader = loader_of(source, sentence_size=7)
        other = loader_of(source, sentence_size=31, sentences_per_batch=1)
        found = [
            {
                int(r): tuple(c.tolist())
                for b in one
                for r, c in zip(np.asarray(b.row), np.asarray(b.control_row), strict=True)
            }
            for one in (loader, other)
        ]
        assert found[0] == found[1]

    def test_a_batch_can_be_read_alone(self, source):
        loader = loader_of(source)
        for step, batch in enumerate(loader):
            if step in (0, 3):
                alone = loader.batch(step, 0)
                for name in FIELDS:
                    assert (getattr(alone, name) == getattr(batch, name)).all()

    def test_are_not_negative(self, source):
        with pytest.raises(ConfigError, match="epoch: got -1"):
            loader_of(source).set_epoch(-1)


class TestThreads:
    def test_do_not_change_the_batches(self, source):
        expected = None
        for threads, prefetch in ((1, 1), (2, 2), (8, 3), (2, 50)):
            found = [
                [np.asarray(getattr(b, name)) for name in FIELDS]
                for b in loader_of(source, threads=threads, prefetch=prefetch)
            ]
            expected = expected or found
            assert len(found) == len(expected)
            for one, other in zip(found, expected, strict=True):
                assert all((a == b).all() for a, b in zip(one, other, strict=True))

    def test_end_with_the_epoch(self, source):
        list(loader_of(source, threads=4))
        assert alive() == []

    @pytest.mark.parametrize("threads", [1, 2, 8])
    @pytest.mark.parametrize("after", [1, 3])
    def test_end_when_the_iterator_is_dropped(self, source, threads, after):
        iterator = iter(loader_of(source, threads=threads, prefetch=2))
        for _ in range(after):
            next(iterator)
        assert alive() != []
        del iterator
        gc.collect()
        assert alive() == []

    def test_do_not_start_before_they_are_needed(self, source):
        iterator = iter(loader_of(source))
        assert alive() == []
        del iterator

    def test_serve_two_iterators_at_once(self, source):
        loader = loader_of(source)
        for one, other in zip(loader, loader, strict=True):
            assert (one.row == other.row).all()
        assert alive() == []


def test_an_empty_split_has_no_batches(source):
    loader = loader_of(source, "valid")
    empty = SentencePlan.from_rows(loader.plan.config, source.groups, source.groups.rows(np.zeros(0, dtype=int)))
    nothing = Loader(source, source.groups.rows(np.zeros(0, dtype=int)), empty, loader.pools)
    assert (list(nothing), len(nothing)) == ([], 0)


BAD_OPTIONS = {
    "n_basal_samples": -1,
    "threads": 0,
    "prefetch": 0,
    "n_hosts": 0,
    "host": 1,
    "layout": "coo",
    "to": "torch",
    "target_sum": 0.0,
    "extras": ("colour",),
    "text_width": 0,
    "memory_limit": "much",
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_options_are_checked_when_made(source, name):
    what = "Not a size" if name == "memory_limit" else f"{name}: got"
    with pytest.raises(ConfigError, match=what):
        loader_of(source, **{name: BAD_OPTIONS[name]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"genes": ["nonesuch"]}, "genes: 'nonesuch' is not a gene"),
        ({"genes": ["ENSG00000000000"] * 2}, "genes"),
        ({"obs": ("nonesuch",)}, "obs column 'nonesuch'"),
        ({"fixed_pairs": True, "n_basal_samples": 0}, "fixed_pairs"),
        ({"downsampling": DownsamplingConfig(is_log1p_input=True)}, "downsampling"),
        ({"downsampling": DownsamplingConfig(fraction=0.5, estimator="rounding")}, "downsampling"),
    ],
)
def test_options_that_do_not_go_together_are_refused(source, options, message):
    with pytest.raises(LazypertError, match=message):
        loader_of(source, **options)


class TestThroughThePipeline:
    """Steps that the pipeline adds: defaults, split names, and QC."""

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
    def test_covers_what_qc_kept(self, result, split):
        seen = []
        for batch in result.loader(split):
            assert batch.counts.shape == (32, 200)
            assert batch.controls.shape == (32, 3, 200)
            seen += np.asarray(batch.row)[~np.asarray(batch.is_filler)].tolist()
        rows = result.splits[split]
        assert sorted(seen) == sorted(rows)
        assert result.filter_mask[seen].all()

    def test_options_override_the_config(self, result):
        batch = next(iter(result.loader("train", sentence_size=4, sentences_per_batch=1, n_basal_samples=1)))
        assert (batch.counts.shape, batch.controls.shape, batch.sentence_size) == ((4, 200), (4, 1, 200), 4)
        assert len(result.loader("train", sentence_size=500, sentences_per_batch=5, drop_last=True)) == 24 // 5
        one, other = (next(iter(result.loader("train", seed=seed))) for seed in (1, 2))
        assert (one.row != other.row).any()

    def test_evaluation_keeps_its_order(self, result):
        def rows(split):
            return [np.asarray(b.row).tolist() for b in result.loader(split)]

        assert rows("valid") == rows("valid")
        groups = result.source.get_group_codes()
        order = [int(groups[r]) for batch in rows("test") for r in batch]
        n = len(result.test_indices)
        assert order[: n // 2] == sorted(order[: n // 2])
        shuffled = [np.asarray(b.row).tolist() for b in result.loader("test", shuffle=True)]
        assert shuffled != rows("test")

    def test_unknown_splits(self, result):
        with pytest.raises(ConfigError, match="split: got 'training'"):
            result.loader("training")
