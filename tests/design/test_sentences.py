"""Sentences are pure, exact in size, and visit each cell once an epoch."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypert import PerturbationBatchSampler, PerturbationSamplerConfig, RandomSplitter, RandomSplitterConfig
from lazypert.design.sentences import SentencePlan
from lazypert.errors import ConfigError
from tests.support.screens import design_cells, make_cells, random_cells

code_lists = st.lists(st.integers(-2, 5), min_size=1, max_size=60)
lengths = st.integers(1, 9)


def plan_of(codes, sentence_size, *, shuffle=True, **options):
    return SentencePlan.from_codes(
        PerturbationSamplerConfig(sentence_size=sentence_size, **options), codes, shuffle=shuffle
    )


def epoch_of(plan, epoch=0):
    """(n_sentences, sentence_size) cells and filler flags, block by block."""
    arranged = plan.epoch(epoch)
    blocks = [arranged.block(number, fill=False) for number in range(arranged.n_blocks)]
    if not blocks:
        empty = np.empty((0, plan.config.sentence_size))
        return empty.astype(int), empty.astype(bool)
    return np.concatenate([c for c, _ in blocks]), np.concatenate([f for _, f in blocks])


@given(code_lists, lengths, st.integers(1, 4), st.integers(0, 3), st.booleans())
@settings(max_examples=40, deadline=None)
def test_an_epoch_is_every_labelled_cell_once_in_pure_sentences(codes, size, per_batch, epoch, shuffle):
    plan = plan_of(codes, size, sentences_per_batch=per_batch, shuffle=shuffle)
    cells, is_padding = epoch_of(plan, epoch)
    codes = np.array(codes)
    assert all(len(set(codes[sentence])) == 1 for sentence in cells)
    assert sorted(cells[~is_padding]) == np.flatnonzero(codes >= 0).tolist()
    # No more sentences than the groups need, and fillers only where a group's last one is short.
    needed = sum(-(-n // size) for code, n in Counter(codes.tolist()).items() if code >= 0)
    assert cells.shape == (needed, size) == (plan.n_sentences, size)
    assert len(plan) == -(-needed // per_batch)
    assert all((~flags).any() for flags in is_padding)


@given(code_lists, lengths, st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_drop_last_leaves_out_the_short_batch_only(codes, size, per_batch):
    plan = plan_of(codes, size, sentences_per_batch=per_batch)
    dropping = plan_of(codes, size, sentences_per_batch=per_batch, drop_last=True)
    assert len(dropping) == plan.n_sentences // per_batch
    kept, _ = epoch_of(dropping, 3)
    assert kept.shape == (len(dropping) * per_batch, size)
    whole = {tuple(sentence) for sentence in epoch_of(plan, 3)[0].tolist()}
    assert {tuple(sentence) for sentence in kept.tolist()} <= whole


@given(code_lists, lengths, st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_downsampling_takes_the_same_cells_every_epoch(codes, size, limit):
    plan = plan_of(codes, size, downsample_cells=limit)
    seen = [np.sort(c[~f]).tolist() for c, f in (epoch_of(plan, epoch) for epoch in range(3))]
    assert seen[0] == seen[1] == seen[2]
    taken = Counter(np.array(codes)[seen[0]].tolist())
    assert taken == {code: min(n, limit) for code, n in Counter(codes).items() if code >= 0}
    for epoch in range(3):  # fillers come from the taken cells too
        assert set(epoch_of(plan, epoch)[0].ravel()) <= set(seen[0])


def test_evaluation_goes_through_the_groups_in_order():
    cells, is_padding = epoch_of(plan_of([2, 0, 0, 1, 2, 0], 2, shuffle=False))
    assert cells[~is_padding].tolist() == [1, 2, 5, 3, 0, 4]
    assert is_padding.tolist() == [[False, False], [False, True], [False, True], [False, False]]


class TestEpochs:
    codes = np.repeat(np.arange(5), 33)

    def test_the_same_seed_and_epoch_give_the_same(self):
        for epoch in (0, 3):
            one, other = (epoch_of(plan_of(self.codes, 8, seed=7), epoch) for _ in range(2))
            assert (one[0] == other[0]).all()
            assert (one[1] == other[1]).all()

    def test_epochs_and_seeds_differ(self):
        def sentences(seed, epoch):
            return {tuple(sorted(s)) for s in epoch_of(plan_of(self.codes, 8, seed=seed), epoch)[0].tolist()}

        def order(seed, epoch):
            return self.codes[epoch_of(plan_of(self.codes, 8, seed=seed), epoch)[0][:, 0]].tolist()

        for other in ((1, 2), (2, 1)):
            assert len(sentences(1, 1) & sentences(*other)) < 13
            assert order(1, 1) != order(*other)

    def test_blocks_can_be_asked_for_in_any_order(self):
        plan = plan_of(self.codes, 8, sentences_per_batch=3, shuffle_size=1)
        numbers = range(plan.epoch(2).n_blocks)
        assert len(numbers) == len(plan) == 9
        whole = [plan.epoch(2).block(number)[0].tolist() for number in numbers]
        assert [plan.epoch(2).block(number)[0].tolist() for number in reversed(numbers)] == whole[::-1]

    def test_leaves_numpys_global_state_alone(self):
        np.random.seed(1)  # noqa: NPY002
        one = epoch_of(plan_of(self.codes, 8))[0]
        np.random.seed(2)  # noqa: NPY002
        assert (epoch_of(plan_of(self.codes, 8))[0] == one).all()

    def test_fillers_are_drawn_from_the_whole_group(self):
        plan = plan_of([0] * 9, 8)
        drawn = Counter()
        for epoch in range(300):
            cells, is_padding = epoch_of(plan, epoch)
            drawn.update(cells[is_padding].tolist())
        assert sum(drawn.values()) == 2100
        assert all(abs(drawn[cell] - 2100 / 9) < 90 for cell in range(9))

    def test_each_cell_starts_a_sentence_as_often(self):
        plan = plan_of([0] * 12, 4)
        starts = Counter(int(c) for epoch in range(400) for c in epoch_of(plan, epoch)[0][:, 0])
        assert all(abs(starts[cell] - 100) < 50 for cell in range(12))


class TestFromRows:
    @pytest.mark.parametrize("by_batch", [False, True], ids=["group", "batch group"])
    @pytest.mark.parametrize("missing", [0.0, 0.2], ids=["labelled", "some missing"])
    def test_is_the_plan_from_codes(self, by_batch, missing):
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
            assert plan.place is None
            assert (plan.first.tolist(), plan.size.tolist()) == (expected.first.tolist(), expected.size.tolist())
            found, is_padding = epoch_of(plan)
            assert all(len({labels[cell] for cell in sentence}) == 1 for sentence in found)
            assert sorted(found[~is_padding]) == list(range(len(rows)))

    def test_cells_without_a_batch_are_a_group_of_their_own(self):
        cells = make_cells(
            perturbation=["A"] * 4 + ["B"] * 4, batch=["b", None, None, None, None, "b", None, None], control=None
        )
        rows = cells.groups.rows(cells.groups.ids >= 0)
        plan = SentencePlan.from_rows(PerturbationSamplerConfig(sentence_size=2), cells.groups, rows, by_batch=True)
        assert plan.size.tolist() == [1, 3, 1, 3]

    def test_of_an_empty_split_has_no_sentence(self):
        cells = design_cells()
        plan = SentencePlan.from_rows(
            PerturbationSamplerConfig(), cells.groups, cells.groups.rows(np.zeros(0, dtype=int))
        )
        assert (len(plan), plan.n_sentences) == (0, 0)

    def test_takes_memory_for_groups_only(self):
        cells = design_cells()
        plan = SentencePlan.from_rows(PerturbationSamplerConfig(), cells.groups, cells.groups.rows(np.arange(36)))
        assert len(plan.size) == 18


class TestSampler:
    def test_yields_lists_of_places(self):
        sampler = PerturbationBatchSampler(
            PerturbationSamplerConfig(sentence_size=3, sentences_per_batch=2), [0, 1, 1, 1, 0, 0, 2]
        )
        batches = list(sampler)
        assert len(batches) == len(sampler) == 2
        assert [len(batch) for batch in batches] == [6, 3]
        assert all(type(place) is int for batch in batches for place in batch)

    def test_iterates_anew_and_by_epoch(self):
        sampler = PerturbationBatchSampler(PerturbationSamplerConfig(sentence_size=3), [0] * 30)
        first = list(sampler)
        assert list(sampler) == first
        sampler.set_epoch(1)
        assert list(sampler) != first
        sampler.set_epoch(0)
        assert list(sampler) == first

    def test_takes_a_plan(self):
        plan = plan_of([0, 0, 1], 2)
        assert list(PerturbationBatchSampler(plan.config, plan)) == list(
            PerturbationBatchSampler(plan.config, [0, 0, 1])
        )

    @pytest.mark.parametrize("codes", [[], [-1, -1]], ids=["no cell", "no group"])
    def test_of_nothing_is_empty(self, codes):
        assert list(PerturbationBatchSampler(PerturbationSamplerConfig(), codes)) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("sentence_size", 0), ("sentences_per_batch", 0), ("downsample_cells", 0), ("seed", -1)],
)
def test_options_are_checked_when_made(name, value):
    with pytest.raises(ConfigError, match=f"{name}: got {value}"):
        PerturbationSamplerConfig(**{name: value})


def test_epochs_are_not_negative():
    with pytest.raises(ConfigError, match="epoch: got -1"):
        PerturbationBatchSampler(PerturbationSamplerConfig(), [0]).set_epoch(-1)


def variables_of(plan, epoch, n_hosts):
    """Each host's sentences as (cells, fillers), and the numbers of batches."""
    arranged = [plan.epoch(epoch, host=host, n_hosts=n_hosts) for host in range(n_hosts)]
    parts = []
    for one in arranged:
        blocks = [one.block(number, fill=False) for number in range(one.n_blocks)]
        empty = np.empty((0, plan.config.sentence_size), dtype=int)
        parts.append(
            (
                np.concatenate([empty, *(c for c, _ in blocks)]).astype(int),
                np.concatenate([empty.astype(bool), *(f for _, f in blocks)]),
            )
        )
    return parts, [one.n_batches for one in arranged]


class TestHosts:
    @pytest.mark.parametrize("n_hosts", [1, 2, 3, 8])
    @given(code_lists, lengths, st.integers(1, 4), st.integers(0, 3), st.booleans())
    @settings(max_examples=25, deadline=None)
    def test_share_an_epoch_without_overlap(self, n_hosts, codes, size, per_batch, epoch, shuffle):
        plan = plan_of(codes, size, sentences_per_batch=per_batch, shuffle=shuffle)
        parts, n_batches = variables_of(plan, epoch, n_hosts)
        assert len(set(n_batches)) == 1  # or hosts would wait for one another for ever
        seen = np.concatenate([cells[~fillers] for cells, fillers in parts])
        assert sorted(seen) == np.flatnonzero(np.array(codes) >= 0).tolist()  # union exact, overlap 0
        # None has more batches than its sentences need, give or take one window.
        most = max(len(cells) for cells, _ in parts)
        assert n_batches[0] == -(-most // per_batch)
        assert most - min(len(cells) for cells, _ in parts) <= plan.config.sentences_per_window

    @pytest.mark.parametrize("n_hosts", [2, 3, 8])
    def test_fill_up_the_batches_that_they_lack(self, n_hosts):
        plan = plan_of([0] * 50 + [1] * 7, 4, sentences_per_batch=2)
        for host in range(n_hosts):
            one = plan.epoch(0, host=host, n_hosts=n_hosts)
            blocks = [one.block(number) for number in range(one.n_blocks)]
            cells = np.concatenate([c for c, _ in blocks])
            assert len(cells) == one.n_batches * 2
            own = np.concatenate([one.block(number, fill=False)[0] for number in range(one.n_blocks)])
            if len(own):
                assert set(cells.ravel()) <= set(own.ravel())
            else:
                assert all(one.block(number)[1].all() for number in range(one.n_blocks))

    def test_dropping_the_last_batch_makes_them_equal_too(self):
        plan = plan_of(np.repeat(np.arange(9), 13), 4, sentences_per_batch=3, drop_last=True)
        parts, n_batches = variables_of(plan, 0, 4)
        assert len(set(n_batches)) == 1
        assert all(len(cells) == n_batches[0] * 3 for cells, _ in parts)


class TestBalance:
    codes = np.repeat(np.arange(4), [1000, 100, 10, 1])

    def test_groups_get_the_same_number_of_sentences(self):
        plan = plan_of(self.codes, 8, balance="group")
        given = [Counter(self.codes[epoch_of(plan, epoch)[0][:, 0]]) for epoch in range(20)]
        assert all(sum(one.values()) == plan.n_sentences for one in given)
        assert all(max(one.values()) - min(one.values()) <= 1 for one in given)
        total = sum(given, Counter())
        assert all(abs(total[group] - 5 * plan.n_sentences) <= 20 for group in range(4))

    def test_each_lap_through_a_group_visits_every_cell_once(self):
        cells, is_padding = epoch_of(plan_of(self.codes, 8, balance="group"))
        seen = Counter(cells[~is_padding].tolist())
        for group, size in enumerate((1000, 100, 10, 1)):
            visits = [seen[cell] for cell in np.flatnonzero(self.codes == group)]
            assert len(visits) == size
            assert max(visits) - min(visits) <= 1

    @pytest.mark.parametrize("balance", ["perturbation", "cell_type", "group"])
    def test_kinds_get_the_same_number_of_sentences(self, balance):
        cells = random_cells(900, 0, n_perts=5, n_types=3)
        config = PerturbationSamplerConfig(sentence_size=4, balance=balance)
        rows = cells.groups.rows(cells.groups.ids >= 0)
        plan = SentencePlan.from_rows(config, cells.groups, rows)
        given = Counter()
        for epoch in range(30):
            first = rows[epoch_of(plan, epoch)[0][:, 0]]
            axes = ["perturbation", "cell_type"] if balance == "group" else [balance]
            given.update(zip(*(cells.labels(axis, first) for axis in axes), strict=True))
        mean = 30 * plan.n_sentences / len(given)
        assert all(abs(n - mean) <= 0.05 * mean for n in given.values()), given

    def test_weights_of_perturbations(self):
        cells = make_cells(perturbation=["A"] * 90 + ["B"] * 30 + ["non-targeting"] * 30, cell_type=["T"] * 150)
        rows = cells.groups.rows(cells.groups.ids >= 0)
        labels = cells.groups.labels["perturbation"]
        weights = np.array([{"A": 1.0, "B": 3.0}.get(label, 0.0) for label in labels])
        plan = SentencePlan.from_rows(PerturbationSamplerConfig(sentence_size=5), cells.groups, rows, weights=weights)
        given = Counter()
        for epoch in range(50):
            given.update(cells.labels("perturbation", rows[epoch_of(plan, epoch)[0][:, 0]]))
        assert set(given) == {"A", "B"}
        assert abs(given["B"] / given["A"] - 3) < 0.2

    def test_evaluation_visits_each_cell_once(self):
        with pytest.raises(ConfigError, match="balance: needs shuffle=True"):
            plan_of(self.codes, 8, balance="group", shuffle=False)

    def test_shares_that_make_no_sense_are_refused(self):
        cells = make_cells(perturbation=["A"] * 9 + ["B"] * 9, cell_type=["T"] * 18)
        rows, weights = cells.groups.rows([0]), np.ones(len(cells.groups.labels["perturbation"]))
        balanced = PerturbationSamplerConfig(balance="group")
        with pytest.raises(ConfigError, match="balance: got 'group' together with weights"):
            SentencePlan.from_rows(balanced, cells.groups, rows, weights=weights)
        with pytest.raises(ConfigError, match="weights: needs shuffle=True"):
            SentencePlan.from_rows(PerturbationSamplerConfig(), cells.groups, rows, weights=weights, shuffle=False)
        with pytest.raises(ConfigError, match="weights: none of the perturbations"):
            SentencePlan.from_rows(PerturbationSamplerConfig(), cells.groups, rows, weights=0 * weights)


class TestMixing:
    """Statistics of how far apart what lies together comes; 0 or 1 says what perfect mixing would give."""

    codes = np.repeat(np.arange(100), 250)  # groups of about four stretches

    def test_sentences_are_other_sets_of_cells_every_epoch(self):
        """Of two cells of a sentence, those that share one in another epoch too: 1 in 8 by chance here."""
        plan = plan_of(self.codes, 32)
        epochs = []
        for epoch in range(6):
            cells, is_padding = epoch_of(plan, epoch)
            sentence = np.full(len(self.codes), -1)
            sentence[cells[~is_padding]] = np.repeat(np.arange(len(cells)), 32)[~is_padding.ravel()]
            epochs.append(sentence)
        rng = np.random.default_rng(0)
        again, chance = [], []
        for one, other in pairwise(epochs):
            for members in np.split(np.argsort(one, kind="stable"), np.flatnonzero(np.diff(np.sort(one))) + 1):
                if len(members) > 1:
                    a, b = rng.choice(members, 2, replace=False)
                    again.append(other[a] == other[b])
            a, b = rng.integers(0, len(one), (2, 4000))
            same = (self.codes[a] == self.codes[b]) & (a != b)
            chance.extend(other[a[same]] == other[b[same]])
        assert np.mean(again) < 1.25 * 0.125  # 32 of a group's 250 cells
        assert abs(np.mean(again) - np.mean(chance)) < 0.07

    def test_batches_are_of_many_groups(self):
        plan = plan_of(self.codes, 32, sentences_per_batch=8)
        cells, _ = epoch_of(plan)
        groups = self.codes[cells[:, 0]].reshape(-1, 8)
        different = np.mean([len(set(batch)) for batch in groups])
        assert different > 7.4  # by chance 7.7

    @pytest.mark.parametrize("lag", [1, 4, 16])
    def test_neighbouring_sentences_are_no_more_alike_than_others(self, lag):
        groups = np.concatenate([self.codes[epoch_of(plan_of(self.codes, 32), epoch)[0][:, 0]] for epoch in range(10)])
        alike = np.mean(groups[lag:] == groups[:-lag])
        # By chance 0.01; those of one window, 7 of 127 in a block, are as far apart as it allows.
        assert alike < 0.07

    def test_every_cell_comes_early_and_late(self):
        plan = plan_of(self.codes, 32)
        when = np.stack([self._when(plan, epoch) for epoch in range(40)])
        assert np.abs(when.mean(axis=0) - 0.5).max() < 0.26  # sd of a mean of 40: 0.046
        assert abs(when.std() - np.sqrt(1 / 12)) < 0.01
        lags = [np.corrcoef(one, other)[0, 1] for one, other in pairwise(when)]
        assert np.abs(lags).max() < 0.25  # groups move together: 100 of them, so sd 0.1
        assert abs(np.mean(lags)) < 0.06

    @staticmethod
    def _when(plan, epoch):
        cells, is_padding = epoch_of(plan, epoch)
        position = np.empty(250 * 100)
        position[cells[~is_padding]] = np.arange(cells.size).reshape(cells.shape)[~is_padding] / cells.size
        return position
