"""Sentences are of one group each, exact in size, and visit each cell once per epoch."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypert import PerturbationSamplerConfig, RandomSplitter, RandomSplitterConfig
from lazypert.design.sentence_plan import SentencePlan
from lazypert.errors import ConfigError
from tests.support.plans import code_lists, epoch_of, plan_of
from tests.support.screens import design_cells, make_cells, random_cells

lengths = st.integers(1, 9)


@given(code_lists, lengths, st.integers(1, 4), st.integers(0, 3), st.booleans())
@settings(max_examples=40, deadline=None)
def test_an_epoch_visits_every_labelled_cell_once_in_sentences_of_one_group(codes, size, per_batch, epoch, shuffle):
    plan = plan_of(codes, size, sentences_per_batch=per_batch, shuffle=shuffle)
    cells, is_padding = epoch_of(plan, epoch)
    codes = np.array(codes)
    assert all(len(set(codes[sentence])) == 1 for sentence in cells)
    assert sorted(cells[~is_padding]) == np.flatnonzero(codes >= 0).tolist()
    # No more sentences than the groups need, and padding only in the last one of a group.
    needed = sum(-(-n // size) for code, n in Counter(codes.tolist()).items() if code >= 0)
    assert cells.shape == (needed, size) == (plan.n_sentences, size)
    assert len(plan) == -(-needed // per_batch)
    assert all((~flags).any() for flags in is_padding)


@given(code_lists, lengths, st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_drop_last_leaves_out_only_the_short_batch(codes, size, per_batch):
    plan = plan_of(codes, size, sentences_per_batch=per_batch)
    dropping = plan_of(codes, size, sentences_per_batch=per_batch, drop_last=True)
    assert len(dropping) == plan.n_sentences // per_batch
    remaining, _ = epoch_of(dropping, 3)
    assert remaining.shape == (len(dropping) * per_batch, size)
    complete = {tuple(sentence) for sentence in epoch_of(plan, 3)[0].tolist()}
    assert {tuple(sentence) for sentence in remaining.tolist()} <= complete


@given(code_lists, lengths, st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_downsampling_uses_the_same_cells_in_every_epoch(codes, size, limit):
    plan = plan_of(codes, size, downsample_cells=limit)
    seen = [np.sort(c[~f]).tolist() for c, f in (epoch_of(plan, epoch) for epoch in range(3))]
    assert seen[0] == seen[1] == seen[2]
    n_used = Counter(np.array(codes)[seen[0]].tolist())
    assert n_used == {code: min(n, limit) for code, n in Counter(codes).items() if code >= 0}
    for epoch in range(3):  # padding comes from these cells too
        assert set(epoch_of(plan, epoch)[0].ravel()) <= set(seen[0])


def test_evaluation_visits_the_groups_in_order():
    cells, is_padding = epoch_of(plan_of([2, 0, 0, 1, 2, 0], 2, shuffle=False))
    assert cells[~is_padding].tolist() == [1, 2, 5, 3, 0, 4]
    assert is_padding.tolist() == [[False, False], [False, True], [False, True], [False, False]]


class TestFromRows:
    @pytest.mark.parametrize("by_batch", [False, True], ids=["group", "batch group"])
    @pytest.mark.parametrize("missing", [0.0, 0.2], ids=["labelled", "some missing"])
    def test_equals_the_plan_from_codes(self, by_batch, missing):
        for seed in range(10):
            cells = random_cells(200, seed, missing=missing, n_batches=2)
            rows = RandomSplitter(RandomSplitterConfig(seed=seed)).split(cells).train_indices
            axes = ["cell_type", "perturbation"] + (["dataset", "batch"] if by_batch else [])
            labels = list(zip(*(cells.labels(axis, rows) for axis in axes), strict=True))
            seen = {}
            codes = [seen.setdefault(label, len(seen)) for label in labels]  # in order of appearance
            config = PerturbationSamplerConfig(sentence_size=7)
            plan = SentencePlan.from_rows(config, cells.groups, rows, by_batch=by_batch)
            expected = SentencePlan.from_codes(config, codes)
            assert plan.split_index is None
            assert (plan.first.tolist(), plan.size.tolist()) == (expected.first.tolist(), expected.size.tolist())
            sentences, is_padding = epoch_of(plan)
            assert all(len({labels[cell] for cell in sentence}) == 1 for sentence in sentences)
            assert sorted(sentences[~is_padding]) == list(range(len(rows)))

    def test_cells_without_a_batch_form_a_group_of_their_own(self):
        cells = make_cells(
            perturbation=["A"] * 4 + ["B"] * 4, batch=["b", None, None, None, None, "b", None, None], control=None
        )
        rows = cells.groups.rows(cells.groups.ids >= 0)
        plan = SentencePlan.from_rows(PerturbationSamplerConfig(sentence_size=2), cells.groups, rows, by_batch=True)
        assert plan.size.tolist() == [1, 3, 1, 3]

    def test_an_empty_split_has_no_sentences(self):
        cells = design_cells()
        plan = SentencePlan.from_rows(
            PerturbationSamplerConfig(), cells.groups, cells.groups.rows(np.zeros(0, dtype=int))
        )
        assert (len(plan), plan.n_sentences) == (0, 0)

    def test_memory_depends_on_the_number_of_groups(self):
        cells = design_cells()
        plan = SentencePlan.from_rows(PerturbationSamplerConfig(), cells.groups, cells.groups.rows(np.arange(36)))
        assert len(plan.size) == 18


@pytest.mark.parametrize(
    ("name", "value"),
    [("sentence_size", 0), ("sentences_per_batch", 0), ("downsample_cells", 0), ("seed", -1)],
)
def test_options_are_checked_on_construction(name, value):
    with pytest.raises(ConfigError, match=f"{name}: got {value}"):
        PerturbationSamplerConfig(**{name: value})


class TestBalance:
    codes = np.repeat(np.arange(4), [1000, 100, 10, 1])

    def test_groups_get_the_same_number_of_sentences(self):
        plan = plan_of(self.codes, 8, balance="group")
        counts = [Counter(self.codes[epoch_of(plan, epoch)[0][:, 0]]) for epoch in range(20)]
        assert all(sum(count.values()) == plan.n_sentences for count in counts)
        assert all(max(count.values()) - min(count.values()) <= 1 for count in counts)
        total = sum(counts, Counter())
        assert all(abs(total[group] - 5 * plan.n_sentences) <= 20 for group in range(4))

    def test_each_visit_to_a_group_includes_every_cell_once(self):
        cells, is_padding = epoch_of(plan_of(self.codes, 8, balance="group"))
        seen = Counter(cells[~is_padding].tolist())
        for group, size in enumerate((1000, 100, 10, 1)):
            visits = [seen[cell] for cell in np.flatnonzero(self.codes == group)]
            assert len(visits) == size
            assert max(visits) - min(visits) <= 1

    @pytest.mark.parametrize("balance", ["perturbation", "cell_type", "group"])
    def test_labels_get_the_same_number_of_sentences(self, balance):
        cells = random_cells(900, 0, n_perts=5, n_types=3)
        config = PerturbationSamplerConfig(sentence_size=4, balance=balance)
        rows = cells.groups.rows(cells.groups.ids >= 0)
        plan = SentencePlan.from_rows(config, cells.groups, rows)
        counts = Counter()
        for epoch in range(30):
            first = rows[epoch_of(plan, epoch)[0][:, 0]]
            axes = ["perturbation", "cell_type"] if balance == "group" else [balance]
            counts.update(zip(*(cells.labels(axis, first) for axis in axes), strict=True))
        mean = 30 * plan.n_sentences / len(counts)
        assert all(abs(n - mean) <= 0.05 * mean for n in counts.values()), counts

    def test_perturbations_get_sentences_in_proportion_to_their_weights(self):
        cells = make_cells(perturbation=["A"] * 90 + ["B"] * 30 + ["non-targeting"] * 30, cell_type=["T"] * 150)
        rows = cells.groups.rows(cells.groups.ids >= 0)
        labels = cells.groups.labels["perturbation"]
        weights = np.array([{"A": 1.0, "B": 3.0}.get(label, 0.0) for label in labels])
        plan = SentencePlan.from_rows(PerturbationSamplerConfig(sentence_size=5), cells.groups, rows, weights=weights)
        counts = Counter()
        for epoch in range(50):
            counts.update(cells.labels("perturbation", rows[epoch_of(plan, epoch)[0][:, 0]]))
        assert set(counts) == {"A", "B"}
        assert abs(counts["B"] / counts["A"] - 3) < 0.2

    def test_evaluation_cannot_be_balanced(self):
        with pytest.raises(ConfigError, match="balance: needs shuffle=True"):
            plan_of(self.codes, 8, balance="group", shuffle=False)

    def test_contradictory_shares_are_refused(self):
        cells = make_cells(perturbation=["A"] * 9 + ["B"] * 9, cell_type=["T"] * 18)
        rows, weights = cells.groups.rows([0]), np.ones(len(cells.groups.labels["perturbation"]))
        balanced = PerturbationSamplerConfig(balance="group")
        with pytest.raises(ConfigError, match="balance: got 'group' together with weights"):
            SentencePlan.from_rows(balanced, cells.groups, rows, weights=weights)
        with pytest.raises(ConfigError, match="weights: needs shuffle=True"):
            SentencePlan.from_rows(PerturbationSamplerConfig(), cells.groups, rows, weights=weights, shuffle=False)
        with pytest.raises(ConfigError, match="weights: none of the perturbations"):
            SentencePlan.from_rows(PerturbationSamplerConfig(), cells.groups, rows, weights=0 * weights)


def test_repr_counts_sentences_and_groups():
    expected = "SentencePlan(3 sentences of 2 groups; PerturbationSamplerConfig(sentence_size=2))"
    assert repr(plan_of([0, 0, 0, 1], 2)) == expected
