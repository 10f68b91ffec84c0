"""Sentences are of one group each, exact in size, and visit each cell once per epoch."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypert import PerturbationSamplerConfig, RandomSplitter, RandomSplitterConfig
from lazypert.design.sampler_config import choose_sentence_size
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
    def test_sentences_are_of_one_group_and_dataset(self, by_batch, missing):
        for seed in range(10):
            cells = random_cells(200, seed, missing=missing, n_batches=2, n_datasets=2)
            rows = RandomSplitter(RandomSplitterConfig(seed=seed)).split(cells).train_indices
            axes = ["cell_type", "perturbation", "dataset"] + (["batch"] if by_batch else [])
            labels = list(zip(*(cells.labels(axis, rows) for axis in axes), strict=True))
            config = PerturbationSamplerConfig(sentence_size=7)
            plan = SentencePlan.from_rows(config, cells.groups, rows, by_batch=by_batch)
            sizes = Counter(labels)
            assert sorted(plan.size.tolist()) == sorted(sizes.values())
            assert (plan.split_index is None) == (not by_batch)
            sentences, is_padding = epoch_of(plan)
            assert all(len({labels[cell] for cell in sentence}) == 1 for sentence in sentences)
            assert sorted(sentences[~is_padding]) == list(range(len(rows)))
            assert len(sentences) == sum(-(-n // 7) for n in sizes.values())

    def test_cells_without_a_batch_form_a_group_of_their_own(self):
        cells = make_cells(
            perturbation=["A"] * 4 + ["B"] * 4, batch=["b", None, None, None, None, "b", None, None], control=None
        )
        rows = cells.groups.rows(cells.groups.ids >= 0)
        plan = SentencePlan.from_rows(PerturbationSamplerConfig(sentence_size=2), cells.groups, rows, by_batch=True)
        assert plan.size.tolist() == [3, 1, 3, 1]

    def test_an_empty_split_has_no_sentences(self):
        cells = design_cells()
        plan = SentencePlan.from_rows(
            PerturbationSamplerConfig(), cells.groups, cells.groups.rows(np.zeros(0, dtype=int))
        )
        assert (len(plan), plan.n_sentences) == (0, 0)

    def test_memory_depends_on_the_number_of_groups(self):
        cells = design_cells()
        plan = SentencePlan.from_rows(PerturbationSamplerConfig(), cells.groups, cells.groups.rows(np.arange(18)))
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


class TestFairness:
    """Sentences are simple random samples of their group, and other ones in every epoch."""

    @pytest.mark.parametrize("size", [32, 64, 512])
    def test_any_mark_of_cells_varies_among_sentences_as_by_chance(self, size):
        n, n_epochs = 4800, 4
        plan = plan_of(np.zeros(n, int), size)
        # Cells are in the order of their hashes, so a random mark stands for whatever was measured.
        mark = np.random.default_rng(1).random(n) < 0.1
        shares = np.concatenate([mark[epoch_of(plan, epoch)[0]].mean(axis=1) for epoch in range(n_epochs)])
        expected = mark.mean() * (1 - mark.mean()) / size * (1 - size / n)
        n_sentences = len(shares)
        assert abs(shares.var() / expected - 1) < 4 * np.sqrt(2 / n_sentences) + 0.05

    @pytest.mark.parametrize(("n", "size", "most"), [(9600, 64, 8.5), (9600, 32, 8.5), (1000, 64, 8.5), (300, 32, 8.5)])
    def test_cells_of_a_sentence_rarely_meet_again(self, n, size, most):
        plan = plan_of(np.zeros(n, int), size)
        ratios = []
        for epoch in range(4):
            (before, _), (after, _) = epoch_of(plan, epoch), epoch_of(plan, epoch + 1)
            sentence = np.empty(n, int)
            sentence[after] = np.arange(len(after))[:, None]
            ordered = np.sort(sentence[before], axis=1)
            met = sum(
                int((count * (count - 1)).sum()) for count in (np.unique(o, return_counts=True)[1] for o in ordered)
            )
            ratios.append(met / (before.size * (size - 1)) / ((size - 1) / (n - 1)))
        assert np.mean(ratios) < most

    def test_neighbouring_batches_show_nearly_as_many_groups_as_by_chance(self):
        rng = np.random.default_rng(0)
        sizes = rng.integers(100, 1001, 2000)
        plan = plan_of(np.repeat(np.arange(2000), sizes), 32, sentences_per_batch=16)
        arranged = plan.epoch(0)
        group_of = np.repeat(np.arange(2000), sizes)
        groups = np.concatenate([group_of[arranged.block(number).cells[:, 0]] for number in range(arranged.n_blocks)])
        n_neighbours = 16 * 16
        seen = [len(set(groups[i : i + n_neighbours])) for i in range(0, len(groups) - n_neighbours, n_neighbours)]
        rng.shuffle(groups)
        chance = [len(set(groups[i : i + n_neighbours])) for i in range(0, len(groups) - n_neighbours, n_neighbours)]
        assert np.mean(seen) > 0.8 * np.mean(chance)

    def test_a_batch_of_cells_is_spread_evenly_over_its_sentences_and_read_with_its_group(self):
        n, n_batches = 9600, 8
        cells = make_cells(perturbation=["A"] * n, batch=[f"b{i % n_batches}" for i in range(n)], control=None)
        rows = cells.groups.rows(cells.groups.ids >= 0)
        config = PerturbationSamplerConfig(sentence_size=64)
        plan = SentencePlan.from_rows(config, cells.groups, rows, by_batch=True)
        arranged = plan.epoch(0)
        for number in range(arranged.n_blocks):
            positions = np.sort(rows.positions(arranged.block(number).cells.ravel()))
            gaps = np.diff(np.unique(positions))
            # A block reads slices of the group in which most cells are wanted.
            assert np.mean(gaps <= 4) > 0.85


def test_padding_has_other_cells_of_the_group_if_there_are_enough():
    plan = plan_of(np.repeat([0, 1], [100, 5]), 16)
    for epoch in range(5):
        for cells in epoch_of(plan, epoch)[0]:
            counts = Counter(cells.tolist())
            assert max(counts.values()) - min(counts.values()) <= 1
            assert len(counts) == (5 if cells[0] >= 100 else 16)


def test_repr_counts_sentences_and_groups():
    expected = "SentencePlan(3 sentences of 2 groups; PerturbationSamplerConfig(sentence_size=2))"
    assert repr(plan_of([0, 0, 0, 1], 2)) == expected


class TestSentenceSize:
    @given(st.lists(st.integers(1, 2000), min_size=1, max_size=30))
    @settings(max_examples=100, deadline=None)
    def test_it_is_the_longest_that_needs_little_padding(self, sizes):
        def padding(size):
            return sum(-(-n // size) * size - n for n in sizes) / sum(-(-n // size) * size for n in sizes)

        candidates = [size for size in range(1, 16) if size <= max(sizes)]
        candidates += [size for size in range(16, 513, 8) if size < max(sizes) + 8]
        least = min(map(padding, candidates))
        expected = max(size for size in candidates if padding(size) <= max(0.25, least) + 1e-12)
        assert choose_sentence_size(np.array(sizes)) == expected

    def test_it_does_not_depend_on_a_split_without_cells(self):
        assert choose_sentence_size(np.empty(0, np.int64)) == 1

    def test_the_plan_states_its_padding(self):
        plan = plan_of([0] * 5 + [1] * 8, 4)
        assert plan.padding_share == 1 - 13 / 16
