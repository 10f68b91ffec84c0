"""Batches are what the plan says, whatever the threads do; shapes never change."""

import gc
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import sparse

from lazypert import (
    PerturbationAnnDataSource,
    PerturbationPipeline,
    PerturbationPipelineConfig,
    PerturbationSourceConfig,
    SparseRows,
)
from lazypert.design.control_pools import control_pools
from lazypert.design.sentences import PerturbationSamplerConfig, SentencePlan
from lazypert.downsampling.downsampler import DownsamplingConfig
from lazypert.errors import ConfigError, LazypertError, StoreDamagedError
from lazypert.loading.loader import Loader
from tests.support.loaders import loader_of, whole_loader

FIELDS = ["counts", "controls", "pert_code", "cell_type_code", "batch_code"]
FIELDS += ["is_control", "is_padding", "row", "control_row"]


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
        rows = [int(r) for b in loader for r, f in zip(b.row, b.is_padding, strict=True) if not f]
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
        assert shapes["is_padding"] == ((45,), "bool")

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
    "n_basal_samples": (-1, 2.0),
    "threads": (0, "2"),
    "prefetch": (0, 1.5),
    "n_hosts": (0,),
    "host": (1,),
    "layout": ("coo", None),
    "to": ("torch",),
    "target_sum": (0.0, "1e4", float("inf")),
    "downsampling": (0.5,),
    "sharding": ("gpu",),
    "fixed_pairs": ("no",),
    "genes": ("ENSG00000000000", {"ENSG00000000000"}),
    "extras": (("colour",), "barcode"),
    "obs": ("cell_type",),
    "text_width": (0,),
    "memory_limit": ("much", -5),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in BAD_OPTIONS for value in BAD_OPTIONS[name]])
def test_options_are_checked_when_made(source, name, value):
    what = "Not a size" if name == "memory_limit" else f"{name}: got"
    with pytest.raises(ConfigError, match=what):
        loader_of(source, **{name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"genes": ["nonesuch"]}, "genes: 'nonesuch' is not a gene"),
        ({"genes": ["ENSG00000000000"] * 2}, "genes"),
        ({"obs": ("nonesuch",)}, "obs: got 'nonesuch', expected an obs column"),
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


def same(one, other):
    """Whether two batches are bit-identical."""
    mine, theirs = (jax.tree.leaves(batch) for batch in (one, other))
    return len(mine) == len(theirs) and all(
        a.dtype == b.dtype and (np.asarray(a) == np.asarray(b)).all() for a, b in zip(mine, theirs, strict=True)
    )


EVERYTHING = {
    "layout": "csr",
    "genes": [f"ENSG{i:011d}" for i in (3, 1, 150)],
    "target_sum": 1e4,
    "downsampling": DownsamplingConfig(fraction=0.5),
    "extras": ("pert_emb", "barcode"),
    "obs": ("n_umis",),
}


@pytest.fixture(scope="module")
def everything(source):
    """Options that use everything there is, for the genes of this screen."""
    return EVERYTHING | {"genes": [source.var.index[i] for i in (3, 1, 150)], "obs": (source.stores[0].obs_columns[0],)}


class TestSameBatches:
    """Batches depend on seed, epoch, host and step; never on threads, timing, or how one got there."""

    @pytest.mark.parametrize("options", [{}, {"layout": "csr"}, "everything"], ids=["dense", "csr", "everything"])
    def test_whatever_the_threads_the_prefetch_and_the_memory(self, source, options, request):
        options = request.getfixturevalue("everything") if options == "everything" else options
        expected = list(loader_of(source, threads=1, prefetch=1, **options))
        for threads, prefetch, memory in ((1, 4, "1MiB"), (2, 2, "512MiB"), (8, 3, "2MiB"), (2, 50, "1GiB")):
            found = list(loader_of(source, threads=threads, prefetch=prefetch, memory_limit=memory, **options))
            assert len(found) == len(expected)
            if memory in ("512MiB", "1GiB"):  # what is kept in memory decides which controls are in reach
                assert all(same(a, b) for a, b in zip(found, expected, strict=True))
            else:
                assert all((a.row == b.row).all() for a, b in zip(found, expected, strict=True))

    @pytest.mark.parametrize("options", [{}, "everything"], ids=["dense", "everything"])
    def test_resumed_at_every_step(self, source, options, request):
        options = request.getfixturevalue("everything") if options == "everything" else options
        options |= {"sentence_size": 16, "sentences_per_batch": 8, "shuffle_size": 400}
        loader = loader_of(source, **options)
        loader.set_epoch(1)
        whole, states = [], [loader.state_dict()]
        for batch in loader:
            whole.append(batch)
            states.append(loader.state_dict())
        assert len(whole) > 6
        for step, state in enumerate(states):
            other = loader_of(source, **options)
            other.load_state_dict(json.loads(json.dumps(state)))
            assert other.state_dict() == state
            rest = list(other)
            assert len(rest) == len(whole) - step
            assert all(same(a, b) for a, b in zip(rest, whole[step:], strict=True))
            assert other.state_dict()["step"] == len(whole)

    def test_after_a_resumed_epoch_comes_a_whole_one(self, source):
        loader = loader_of(source)
        n = len(loader)
        loader.load_state_dict(loader.state_dict() | {"step": n - 2})
        assert [len(list(loader)) for _ in range(2)] == [2, n]

    def test_an_iterator_says_and_sets_where_it_is(self, source):
        loader = loader_of(source)
        one = iter(loader)
        for _ in range(3):
            next(one)
        state = one.get_state()
        rest = list(one)
        other = iter(loader)
        next(other)
        other.set_state(state)
        assert alive() == []
        assert all(same(a, b) for a, b in zip(other, rest, strict=True))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"version": 0}, "expected what state_dict"),
            ({"step": -1}, r"state\['step'\]: got -1"),
            ({"step": 1000}, r"state\['step'\]: got 1000, expected \d+ at most, the batches of an epoch"),
            ({"epoch": None}, r"state\['epoch'\]: got None"),
            ({"plan": {}}, "saved with sentence_size=None"),
            ({"plan": None}, "saved with sentence_size=None"),
        ],
    )
    def test_a_state_of_something_else_is_refused(self, source, change, message):
        loader = loader_of(source)
        with pytest.raises(ConfigError, match=message):
            loader.load_state_dict(loader.state_dict() | change)
        with pytest.raises(ConfigError, match="saved with sentence_size=7, and this loader has 8"):
            loader_of(source, sentence_size=8).load_state_dict(loader.state_dict())
        with pytest.raises(ConfigError, match="expected what state_dict"):
            loader.load_state_dict("epoch 3")


class TestHosts:
    @pytest.mark.parametrize("n_hosts", [1, 2, 3, 8])
    def test_share_the_cells(self, source, n_hosts):
        loaders = [loader_of(source, host=host, n_hosts=n_hosts) for host in range(n_hosts)]
        assert len({len(loader) for loader in loaders}) == 1
        seen = Counter()
        for loader in loaders:
            for batch in loader:
                seen.update(np.asarray(batch.row)[~np.asarray(batch.is_padding)].tolist())
        assert seen == Counter(int(row) for row in loaders[0].rows)
        assert f"host {n_hosts - 1} of {n_hosts}" in repr(loaders[-1]) or n_hosts == 1

    def test_default_to_jaxs_processes(self, source):
        loader = loader_of(source)
        assert (loader.host, loader.n_hosts) == (jax.process_index(), jax.process_count()) == (0, 1)


class TestEndpoints:
    def test_sparse_rows_are_the_dense_ones(self, source):
        for one, other in zip(loader_of(source), loader_of(source, layout="csr"), strict=True):
            assert isinstance(other.counts, SparseRows)
            np.testing.assert_array_equal(jax.jit(SparseRows.to_dense)(other.counts), one.counts)
            np.testing.assert_array_equal(np.asarray(other.controls.to_dense()).reshape(28, 2, 200), one.controls)
            assert other.counts.to_scipy().shape == (28, 200)

    @pytest.mark.parametrize("layout", ["dense", "csr"])
    def test_numpy_arrays_are_what_jax_would_show(self, source, layout):
        for one, other in zip(
            loader_of(source, layout=layout), loader_of(source, layout=layout, to="numpy"), strict=True
        ):
            assert not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(other))
            assert same(one, other)

    def test_compile_once_whatever_the_rows_hold(self, source):
        traced = []

        @jax.jit
        def step(batch):
            traced.append(batch.counts.data.shape)
            return batch.counts.to_dense().sum()

        for batch in loader_of(source, layout="csr"):
            step(batch)
        assert len(traced) <= 2  # one room for nearly all batches, a larger one for those that need it

    def test_normalised_as_scanpy_does(self, source, reference):
        import scanpy as sc

        expected = reference.adata.copy()
        sc.pp.normalize_total(expected, target_sum=1e4)
        sc.pp.log1p(expected)
        for batch in loader_of(source, target_sum=1e4):
            names = list(source.obs_names(np.asarray(batch.row)))
            np.testing.assert_allclose(batch.counts, expected[names].X.toarray(), rtol=1e-5)

    def test_genes_are_given_in_the_order_asked(self, source, reference):
        genes = [reference.adata.var_names[i] for i in (150, 3, 77)]
        for batch in loader_of(source, genes=genes):
            names = list(source.obs_names(np.asarray(batch.row)))
            np.testing.assert_array_equal(batch.counts, reference.adata[names, genes].X.toarray())

    @pytest.mark.filterwarnings("ignore:Variable names are not unique")
    def test_genes_that_occur_twice(self, tmp_path):
        from tests.support.stores import screen, write

        loader = whole_loader(write(screen(60, genes=["a", "b", "c", "b"], lean=True), tmp_path / "s.h5ad"))
        assert loader(genes=["c", "a"]).width == 2
        for genes, twice in ((["b"], "b"), (["c", "a", "c"], "c"), (["a", "a", "b"], "a")):
            with pytest.raises(ConfigError, match=f"genes: '{twice}' occurs more than once"):
                loader(genes=genes)

    def test_no_gene_at_all(self, source):
        batch = next(iter(loader_of(source, genes=[])))
        assert (batch.counts.shape, batch.controls.shape) == ((28, 0), (28, 2, 0))

    def test_reads_are_lost_anew_each_epoch_and_for_controls_too(self, source):
        loader = loader_of(source, downsampling=DownsamplingConfig(fraction=0.25))
        raw = list(loader_of(source))
        for field in ("counts", "controls"):
            kept = np.concatenate([np.asarray(getattr(batch, field)) for batch in loader])
            whole = np.concatenate([np.asarray(getattr(batch, field)) for batch in raw])
            assert (kept <= whole).all()
            assert abs(kept.sum() / whole.sum() - 0.25) < 0.01
        first = {int(r): np.asarray(c) for b in loader for r, c in zip(b.row, b.counts, strict=True)}
        loader.set_epoch(1)
        again = {int(r): np.asarray(c) for b in loader for r, c in zip(b.row, b.counts, strict=True)}
        assert np.mean([(first[row] == again[row]).all() for row in first]) < 0.05

    def test_a_depth_to_come_down_to(self, source):
        loader = loader_of(
            source, downsampling=DownsamplingConfig(mode="target_depth", target_depth=50), n_basal_samples=0
        )
        depth = np.concatenate([np.asarray(batch.counts).sum(axis=1) for batch in loader])
        assert abs(depth.mean() - 50) < 2

    def test_embeddings_come_as_they_are_stored(self, tmp_path):
        from tests.support.stores import screen, write

        adata = screen(60)
        source = PerturbationAnnDataSource(
            PerturbationSourceConfig(
                file_path=write(adata, tmp_path / "s.h5ad"), output_space="embedding", embedding_key="X_pca"
            )
        )
        rows = source.groups.rows(source.groups.ids >= 0)
        plan = SentencePlan.from_rows(PerturbationSamplerConfig(sentence_size=4), source.groups, rows)
        loader = Loader(source, rows, plan, control_pools(source.groups, by_batch=False), n_basal_samples=2)
        for batch in loader:
            names = list(source.obs_names(np.asarray(batch.row)))
            np.testing.assert_array_equal(batch.counts, adata[names].obsm["X_pca"])
            controls = list(source.obs_names(np.asarray(batch.control_row).ravel()))
            np.testing.assert_array_equal(np.asarray(batch.controls).reshape(8, 3), adata[controls].obsm["X_pca"])
        assert len(np.unique(np.concatenate([np.asarray(b.control_row).ravel() for b in loader]))) > 8
        for wrong in ({"layout": "csr"}, {"target_sum": 1.0}, {"genes": ["gene1"]}):
            with pytest.raises(ConfigError, match="no meaning with output_space='embedding'"):
                Loader(source, rows, plan, loader.pools, **wrong)

    @pytest.mark.parametrize("to", ["jax", "numpy"])
    def test_counts_of_eight_bytes(self, tmp_path, to):
        from tests.support.stores import counts, screen, write

        adata = screen(60, lean=True)
        adata.X = counts(60, 17, dtype="i8") * 2**37
        loader = whole_loader(write(adata, tmp_path / "s.h5ad"))
        for one, other in zip(loader(to=to), loader(to=to, layout="csr"), strict=True):
            names = list(loader.source.obs_names(np.asarray(one.row)))
            np.testing.assert_array_equal(one.counts, adata[names].X.toarray())
            np.testing.assert_array_equal(other.counts.to_dense(), one.counts)
            np.testing.assert_array_equal(np.asarray(other.controls.to_dense()).reshape(8, 2, 17), one.controls)

    @pytest.mark.parametrize("genes", [None, ["gene0", "gene1"], [f"gene{i}" for i in range(16)]])
    @pytest.mark.parametrize("layout", ["dense", "csr"])
    def test_a_row_with_a_nan_has_no_total(self, tmp_path, layout, genes):
        from tests.support.stores import counts, screen, write

        adata = screen(60, lean=True)
        values = counts(60, 17).toarray()
        values[::2, 16] = np.nan
        adata.X = sparse.csr_matrix(values)
        loader = whole_loader(write(adata, tmp_path / "s.h5ad"))
        for batch in loader(layout=layout, genes=genes, target_sum=100.0):
            for rows, found in ((batch.row, batch.counts), (batch.control_row, batch.controls)):
                found = np.asarray(found if layout == "dense" else found.to_dense()).reshape(rows.size, -1)
                cells = adata[list(loader.source.obs_names(np.asarray(rows).ravel()))].X.toarray()
                total = cells.sum(axis=1, keepdims=True)
                scale = np.where(total > 0, 100 / np.where(total > 0, total, 1), 0)
                expected = np.log1p(cells * scale)[:, : 17 if genes is None else len(genes)]
                np.testing.assert_allclose(found, expected, rtol=2e-6)

    def test_reads_can_be_lost_from_counts_only(self, tmp_path):
        from tests.support.stores import screen, write

        adata = screen(60)
        source = PerturbationAnnDataSource(
            PerturbationSourceConfig(file_path=write(adata, tmp_path / "s.h5ad"), layer="lognorm")
        )
        rows = source.groups.rows(source.groups.ids >= 0)
        plan = SentencePlan.from_rows(PerturbationSamplerConfig(sentence_size=4), source.groups, rows)
        with pytest.raises(LazypertError, match="layers/lognorm holds values that are no counts"):
            Loader(source, rows, plan, control_pools(source.groups, by_batch=False), downsampling=DownsamplingConfig())


class TestControls:
    def test_can_be_left_out(self, source):
        for batch in loader_of(source, n_basal_samples=0):
            assert batch.controls is None
            assert batch.control_row is None

    @pytest.mark.parametrize("strategy", ["random", "batch"])
    def test_fixed_pairs_are_those_of_the_mapping(self, reference, strategy):
        config = PerturbationPipelineConfig(
            split_mode="fewshot", held_out_perturbations=("MYC",), mapping_strategy=strategy, n_basal_samples=2,
            sentence_size=8,
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
                    told = ~np.asarray(batch.is_control)
                    rows, controls = np.asarray(batch.row)[told], np.asarray(batch.control_row)[told]
                    assert all(
                        expected[row] == found for row, found in zip(rows.tolist(), controls.tolist(), strict=True)
                    )

    def test_every_one_is_reached(self, source):
        loader = loader_of(source, by_batch=False)
        seen = set()
        for epoch in range(12):
            loader.set_epoch(epoch)
            for batch in loader:
                seen.update(np.asarray(batch.control_row).ravel().tolist())
        assert seen == set(loader.pools.controls)


SHARDED = """
import sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import lazypert as lp
import lazypert.errors

assert len(jax.devices()) == 4
mesh = Mesh(np.array(jax.devices()), ("data",))
sharding = NamedSharding(mesh, PartitionSpec("data"))
config = lp.PerturbationPipelineConfig(sentence_size=4, sentences_per_batch=4, n_basal_samples=2)
result = lp.PerturbationPipeline(config).setup(sys.argv[1])
for layout in ("dense", "csr"):
    plain = result.loader("train", layout=layout, to="numpy", extras=("pert_emb", "barcode"))
    spread = result.loader("train", layout=layout, sharding=sharding, extras=("pert_emb", "barcode"))
    for one, other in zip(plain, spread, strict=True):
        for name in ("row", "control_row", "pert_code", "is_padding", "pert_emb", "barcode"):
            whole, parts = getattr(one, name), getattr(other, name)
            np.testing.assert_array_equal(parts, whole)
            assert parts.sharding.is_equivalent_to(sharding, parts.ndim)
            for number, shard in enumerate(parts.addressable_shards):
                assert shard.device == jax.devices()[number]
                np.testing.assert_array_equal(shard.data, whole[4 * number : 4 * number + 4])
        for name, n in (("counts", 16), ("controls", 32)):
            mine, theirs = getattr(one, name), getattr(other, name)
            if layout == "csr":
                assert {s.data.shape[0] for s in theirs.data.addressable_shards} == {1}
                mine, theirs = (jax.jit(lp.SparseRows.to_dense)(rows) for rows in (mine, theirs))
                assert theirs.sharding.is_equivalent_to(sharding, 2)
            np.testing.assert_array_equal(np.asarray(theirs).reshape(n, -1), np.asarray(mine).reshape(n, -1))
            assert len({s.device for s in theirs.addressable_shards}) == 4
            assert {s.data.shape[0] for s in theirs.addressable_shards} <= {4, 8}
try:
    result.loader("train", sentence_size=3, sentences_per_batch=1, sharding=sharding)
except lp.errors.ConfigError as error:
    assert "cannot divide a batch of 3 cells" in str(error), error
else:
    raise AssertionError("3 cells on 4 devices")
print("spread")
"""


TWO_PROCESSES = """
import json, sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import lazypert as lp
import lazypert.errors

store, port, number = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(number))
assert (jax.process_count(), len(jax.devices()), len(jax.local_devices())) == (2, 4, 2)
sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
config = lp.PerturbationPipelineConfig(train_frac=1.0, valid_frac=0.0, sentence_size=4, sentences_per_batch=3)
result = lp.PerturbationPipeline(config).setup(store)
seen = []
loader = result.loader("train", sharding=sharding)
alone = result.loader("train", to="numpy", host=int(number), n_hosts=2)
try:
    result.loader("train", layout="csr", sharding=sharding)
except lp.errors.ConfigError as error:
    assert "over several processes" in str(error)
else:
    raise AssertionError("shapes would differ")
for batch, own in zip(loader, alone, strict=True):
    assert batch.row.shape == (24,)
    for name in ("row", "is_padding", "counts", "controls"):
        parts = sorted(getattr(batch, name).addressable_shards, key=lambda shard: shard.index[0].start or 0)
        np.testing.assert_array_equal(np.concatenate([shard.data for shard in parts]), getattr(own, name))
    seen += own.row[~own.is_padding].tolist()
print(json.dumps({"rows": seen, "n_batches": len(loader), "n_cells": len(result.train_indices)}))
"""


class TestDevices:
    def test_batches_are_spread_over_four_as_asked(self, reference):
        environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            [sys.executable, "-c", SHARDED, str(reference.store)],
            env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.stdout.strip() == "spread", done.stderr[-3000:]

    @pytest.mark.slow
    def test_processes_put_their_parts_of_a_batch_together(self, reference):
        """Two real processes of two devices each: a batch is one array over four, each has read its own half."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
        running = [
            subprocess.Popen(
                [sys.executable, "-c", TWO_PROCESSES, str(reference.store), str(port), str(number)],
                env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for number in range(2)
        ]  # fmt: skip
        seen = []
        for process in running:
            told, error = process.communicate(timeout=300)
            assert process.returncode == 0, error[-3000:]
            seen.append(json.loads(told.splitlines()[-1]))
        assert seen[0]["n_batches"] == seen[1]["n_batches"]
        rows = Counter(seen[0]["rows"]) + Counter(seen[1]["rows"])
        assert rows == Counter(range(seen[0]["n_cells"]))

    def test_one_device_can_be_named(self, source):
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        for one, other in zip(loader_of(source), loader_of(source, sharding=device), strict=True):
            assert same(one, other)
            assert other.counts.devices() == {jax.devices()[0]}

    def test_numpy_arrays_lie_on_none(self, source):
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        with pytest.raises(ConfigError, match="sharding: got one with to='numpy'"):
            loader_of(source, sharding=device, to="numpy")


def open_files():
    """How many files this process has open, leaving out what the system opens for its own purposes."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


@pytest.fixture
def copy(reference, tmp_path):
    """A store of one's own, to destroy."""
    return shutil.copytree(reference.store, tmp_path / "copy.zarr")


class TestWhenThingsGoWrong:
    """No deadlock, no thread and no file left behind, and an error that says what happened."""

    @pytest.fixture(autouse=True)
    def nothing_is_left(self):
        gc.collect()
        before = open_files()
        yield
        gc.collect()
        assert alive() == []
        assert open_files() == before

    def test_eight_threads_take_from_one_iterator(self, source):
        loader = loader_of(source, sentence_size=4, sentences_per_batch=2)
        expected = {tuple(np.asarray(batch.row).tolist()) for batch in loader}
        shared = iter(loader)

        def work(_):
            return [tuple(np.asarray(batch.row).tolist()) for batch in shared]

        with ThreadPoolExecutor(8) as pool:
            parts = list(pool.map(work, range(8)))
        found = [rows for part in parts for rows in part]
        assert len(found) == len(loader)
        assert set(found) == expected

    def test_eight_threads_iterate_each_by_itself(self, source):
        loader = loader_of(source)
        expected = [np.asarray(batch.row).tolist() for batch in loader]
        with ThreadPoolExecutor(8) as pool:
            for found in pool.map(lambda _: [np.asarray(batch.row).tolist() for batch in loader], range(8)):
                assert found == expected

    @pytest.mark.parametrize("layout", ["dense", "csr"])
    def test_an_exception_of_the_model(self, source, layout):
        def train():
            for step, _ in enumerate(loader_of(source, layout=layout)):
                if step == 2:
                    raise FloatingPointError("the loss is nan")

        with pytest.raises(FloatingPointError, match="the loss is nan"):
            train()

    @pytest.mark.parametrize("threads", [1, 8])
    def test_a_store_that_is_deleted_meanwhile(self, copy, threads):
        source = PerturbationAnnDataSource(PerturbationSourceConfig(file_path=copy))
        loader = loader_of(source, sentence_size=8, sentences_per_batch=2, shuffle_size=16, threads=threads)
        batches = iter(loader)
        next(batches)
        shutil.rmtree(copy)
        with pytest.raises(StoreDamagedError, match=r"X/(indptr|indices|data)/c/0: the file is missing"):
            list(batches)
        with pytest.raises(StopIteration):
            next(batches)
        with pytest.raises(StoreDamagedError):
            loader.batch(0, 0)

    def test_a_chunk_that_is_damaged(self, copy):
        from tests.support.stores import flip

        flip(copy / "X/data/c/0", 8 * 200)
        loader = loader_of(PerturbationAnnDataSource(PerturbationSourceConfig(file_path=copy)))
        with pytest.raises(StoreDamagedError, match="X/data/c/0: the checksum of chunk 0 does not match"):
            list(loader)

    def test_dropped_anywhere_many_times(self, source):
        loader = loader_of(source, sentence_size=8, sentences_per_batch=2, threads=4)
        for taken in range(0, 20, 3):
            batches = iter(loader)
            for _ in range(taken):
                next(batches)
            del batches
        gc.collect()
        assert alive() == []

    def test_closed_and_then_asked(self, source):
        batches = iter(loader_of(source))
        next(batches)
        batches.close()
        assert alive() == []
        with pytest.raises(StopIteration):
            next(batches)
        never = iter(loader_of(source))
        never.close()
        with pytest.raises(StopIteration):
            next(never)

    def test_a_batch_that_there_is_not(self, source):
        loader = loader_of(source)
        with pytest.raises(IndexError, match=f"step: got {len(loader)}, expected 0 to {len(loader) - 1}"):
            loader.batch(len(loader), 0)

    def test_batches_outlive_their_loader(self, source):
        kept = list(loader_of(source, sentence_size=8, sentences_per_batch=2, memory_limit="1MiB"))
        gc.collect()
        for batch in kept:
            np.testing.assert_array_equal(batch.counts, source.batch(np.asarray(batch.row))["counts"])


ENDS_EARLY = """
import sys
import lazypert as lp

config = lp.PerturbationPipelineConfig(train_frac=1.0, valid_frac=0.0, sentence_size=4, sentences_per_batch=2)
batches = iter(lp.PerturbationPipeline(config).setup(sys.argv[1]).loader("train"))
next(batches)
print("one")
"""


def test_a_program_that_ends_in_the_middle_of_an_epoch_ends_well(reference):
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", ENDS_EARLY, str(reference.store)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stdout.strip()) == (0, "one"), done.stderr[-3000:]


class TestOtherStores:
    @pytest.fixture
    def remote(self, reference):
        """The store in fsspec's memory: read through Zarr's store interface, as objects are."""
        import fsspec

        files = fsspec.filesystem("memory")
        for path in reference.store.rglob("*"):
            if path.is_file():
                files.pipe(f"/loader.zarr/{path.relative_to(reference.store)}", path.read_bytes())
        yield "memory://loader.zarr"
        files.rm("/loader.zarr", recursive=True)

    @pytest.mark.parametrize("options", [{}, {"layout": "csr", "target_sum": 1e4}], ids=["dense", "csr"])
    def test_give_the_same_batches(self, source, remote, options):
        other = PerturbationAnnDataSource(PerturbationSourceConfig(file_path=remote, hvg_col="highly_variable"))
        for epoch in range(2):
            loaders = loader_of(source, **options), loader_of(other, **options)
            for loader in loaders:
                loader.set_epoch(epoch)
            assert all(same(a, b) for a, b in zip(*loaders, strict=True))
        assert alive() == []

    def test_ask_for_each_index_once_and_for_neighbours_together(self, remote):
        from zarr.storage import FsspecStore

        asked = []

        class Counting(FsspecStore):
            async def get(self, key, prototype, byte_range=None):
                asked.append((key, byte_range))
                return await super().get(key, prototype, byte_range)

        source = PerturbationAnnDataSource(PerturbationSourceConfig(file_path=remote))
        counting = Counting.from_url(remote, read_only=True)
        for matrix in source.matrices:
            for array in (matrix.indptr, matrix.indices, matrix.data):
                array.reader = type(array.reader)(counting)
        loader = loader_of(source, n_basal_samples=0)
        list(loader)
        n_blocks = loader.plan.epoch(0).n_blocks
        n_shards = sum(array.grid.n_shards for m in source.matrices for array in (m.indptr, m.indices, m.data))
        # One request for each shard's index, and for each block one for each array's neighbouring chunks.
        assert 0 < len(asked) <= n_shards + 3 * n_blocks


class TestGrain:
    """The iterator has the state that Grain checkpoints."""

    @pytest.fixture
    def dataset(self, source):
        grain = pytest.importorskip("grain")

        class Batches(grain.DatasetIterator):
            def __init__(self, batches):
                super().__init__()
                self._batches = batches

            def __next__(self):
                return next(self._batches)

            def get_state(self):
                return self._batches.get_state()

            def set_state(self, state):
                self._batches.set_state(state)

        class Sentences(grain.IterDataset):
            def __iter__(self):
                return Batches(iter(loader_of(source)))

        return Sentences()

    def test_maps_and_resumes(self, source, dataset):
        totals = dataset.map(lambda batch: float(batch.counts.sum()))
        expected = [float(batch.counts.sum()) for batch in loader_of(source)]
        batches = iter(totals)
        assert [next(batches) for _ in range(3)] == expected[:3]
        state = json.loads(json.dumps(batches.get_state()))
        other = iter(totals)
        other.set_state(state)
        assert list(other) == expected[3:]


FIRST_BATCH = """
import sys, time
import jax
import lazypert as lp, lazypert.loader, lazypert.pipeline
from lazypert.memory import peak_memory

jax.devices()
before = peak_memory()
config = lp.PerturbationPipelineConfig(train_frac=1.0, valid_frac=0.0, sentence_size=32, sentences_per_batch=8)
result = lp.PerturbationPipeline(config).setup(sys.argv[1])
for batch in result.loader("train", layout=sys.argv[2]):
    jax.block_until_ready(batch)
print(peak_memory() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_memory_stays_under_a_gibibyte_whatever_the_size(tmp_path):
    """At the defaults, with controls: one store, and another one of four times its size."""
    import lazypert as lp
    from lazypert.simulate import SimulationConfig, simulate_screen

    peaks = {}
    for n_cells in (8_000, 32_000):
        file = tmp_path / f"{n_cells}.h5ad"
        simulate_screen(file, SimulationConfig(n_cells=n_cells, n_genes=18_000, nnz_per_cell=3_500))
        roles = {"pert_col": "perturbation", "cell_type_col": "cell_type", "batch_col": "batch"}
        store = lp.convert(file, tmp_path / f"{n_cells}.zarr", **roles, control_pert="non-targeting")
        file.unlink()
        for layout in ("dense", "csr"):
            done = subprocess.run(
                [sys.executable, "-c", FIRST_BATCH, str(store), layout], capture_output=True, text=True, check=True
            )
            peaks[n_cells, layout] = int(done.stdout)
    assert max(peaks.values()) < 2**30, peaks
    for layout in ("dense", "csr"):
        assert peaks[32_000, layout] < peaks[8_000, layout] + 200 * 2**20, peaks
