"""Epochs depend on seed and number only, are well mixed, and are divided among hosts without overlap."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.plans import code_lists, epoch_of, plan_of

lengths = st.integers(1, 9)


class TestEpochs:
    codes = np.repeat(np.arange(5), 33)

    def test_are_reproducible(self):
        for epoch in (0, 3):
            first, second = (epoch_of(plan_of(self.codes, 8, seed=7), epoch) for _ in range(2))
            assert (first[0] == second[0]).all()
            assert (first[1] == second[1]).all()

    def test_depend_on_seed_and_number(self):
        def sentences(seed, epoch):
            return {tuple(sorted(s)) for s in epoch_of(plan_of(self.codes, 8, seed=seed), epoch)[0].tolist()}

        def order(seed, epoch):
            return self.codes[epoch_of(plan_of(self.codes, 8, seed=seed), epoch)[0][:, 0]].tolist()

        for other in ((1, 2), (2, 1)):
            assert len(sentences(1, 1) & sentences(*other)) < 13
            assert order(1, 1) != order(*other)

    def test_blocks_can_be_made_in_any_order(self):
        plan = plan_of(self.codes, 8, sentences_per_batch=3, shuffle_size=1)
        numbers = range(plan.epoch(2).n_blocks)
        assert len(numbers) == len(plan) == 9
        in_order = [plan.epoch(2).block(number).cells.tolist() for number in numbers]
        assert [plan.epoch(2).block(number).cells.tolist() for number in reversed(numbers)] == in_order[::-1]

    def test_do_not_depend_on_the_global_state_of_numpy(self):
        np.random.seed(1)  # noqa: NPY002
        expected = epoch_of(plan_of(self.codes, 8))[0]
        np.random.seed(2)  # noqa: NPY002
        assert (epoch_of(plan_of(self.codes, 8))[0] == expected).all()

    def test_padding_is_drawn_from_the_whole_group(self):
        plan = plan_of([0] * 9, 8)
        drawn = Counter()
        for epoch in range(300):
            cells, is_padding = epoch_of(plan, epoch)
            drawn.update(cells[is_padding].tolist())
        assert sum(drawn.values()) == 2100
        assert all(abs(drawn[cell] - 2100 / 9) < 90 for cell in range(9))

    def test_cells_start_sentences_equally_often(self):
        plan = plan_of([0] * 12, 4)
        starts = Counter(int(c) for epoch in range(400) for c in epoch_of(plan, epoch)[0][:, 0])
        assert all(abs(starts[cell] - 100) < 50 for cell in range(12))


def hosts_of(plan, epoch, n_hosts):
    """Sentences of each host as (cells, is_padding), and its number of batches."""
    shares = [plan.epoch(epoch, host=host, n_hosts=n_hosts) for host in range(n_hosts)]
    return [epoch_of(plan, epoch, host=host, n_hosts=n_hosts) for host in range(n_hosts)], [s.n_batches for s in shares]


class TestHosts:
    @pytest.mark.parametrize("n_hosts", [1, 2, 3, 8])
    @given(code_lists, lengths, st.integers(1, 4), st.integers(0, 3), st.booleans())
    @settings(max_examples=25, deadline=None)
    def test_divide_an_epoch_without_overlap(self, n_hosts, codes, size, per_batch, epoch, shuffle):
        plan = plan_of(codes, size, sentences_per_batch=per_batch, shuffle=shuffle)
        shares, n_batches = hosts_of(plan, epoch, n_hosts)
        assert len(set(n_batches)) == 1  # otherwise hosts would wait for one another forever
        seen = np.concatenate([cells[~is_padding] for cells, is_padding in shares])
        assert sorted(seen) == np.flatnonzero(np.array(codes) >= 0).tolist()  # complete, without overlap
        # As many batches as the largest share needs; shares differ by one window at most.
        most = max(len(cells) for cells, _ in shares)
        assert n_batches[0] == -(-most // per_batch)
        assert most - min(len(cells) for cells, _ in shares) <= max(1, plan.mixing.sentences_per_window.max(initial=1))

    @pytest.mark.parametrize("n_hosts", [2, 3, 8])
    def test_pad_the_batches_that_they_lack(self, n_hosts):
        plan = plan_of([0] * 50 + [1] * 7, 4, sentences_per_batch=2)
        for host in range(n_hosts):
            share = plan.epoch(0, host=host, n_hosts=n_hosts)
            blocks = [share.block(number) for number in range(share.n_blocks)]
            cells = np.concatenate([block.cells for block in blocks])
            assert len(cells) == share.n_batches * 2
            own = np.concatenate([share.block(number, fill=False).cells for number in range(share.n_blocks)])
            if len(own):
                assert set(cells.ravel()) <= set(own.ravel())
            else:
                assert all(share.block(number).is_padding.all() for number in range(share.n_blocks))

    def test_have_equally_many_batches_without_the_last_one(self):
        plan = plan_of(np.repeat(np.arange(9), 13), 4, sentences_per_batch=3, drop_last=True)
        shares, n_batches = hosts_of(plan, 0, 4)
        assert len(set(n_batches)) == 1
        assert all(len(cells) == n_batches[0] * 3 for cells, _ in shares)


class TestMixing:
    """Statistics of how well cells are mixed, compared with what chance would give."""

    codes = np.repeat(np.arange(100), 250)  # groups of about four stretches

    def test_sentences_are_composed_anew_in_every_epoch(self):
        """By chance, two cells of a sentence share one in the next epoch with a probability of 1 in 8."""
        plan = plan_of(self.codes, 32)
        epochs = []
        for epoch in range(6):
            cells, is_padding = epoch_of(plan, epoch)
            sentence = np.full(len(self.codes), -1)
            sentence[cells[~is_padding]] = np.repeat(np.arange(len(cells)), 32)[~is_padding.ravel()]
            epochs.append(sentence)
        rng = np.random.default_rng(0)
        together_again, chance = [], []
        for one, other in pairwise(epochs):
            for members in np.split(np.argsort(one, kind="stable"), np.flatnonzero(np.diff(np.sort(one))) + 1):
                if len(members) > 1:
                    a, b = rng.choice(members, 2, replace=False)
                    together_again.append(other[a] == other[b])
            a, b = rng.integers(0, len(one), (2, 4000))
            same = (self.codes[a] == self.codes[b]) & (a != b)
            chance.extend(other[a[same]] == other[b[same]])
        # Stretches of 16 cells are read together, and so partly meet again.
        assert np.mean(together_again) < 3.5 * 0.125  # 32 of a group's 250 cells
        assert abs(np.mean(chance) - 0.125) < 0.05

    def test_batches_consist_of_many_groups(self):
        plan = plan_of(self.codes, 32, sentences_per_batch=8)
        cells, _ = epoch_of(plan)
        groups = self.codes[cells[:, 0]].reshape(-1, 8)
        different = np.mean([len(set(batch)) for batch in groups])
        assert different > 7.4  # by chance 7.7

    @pytest.mark.parametrize("lag", [1, 4, 16])
    def test_neighbouring_sentences_are_rarely_of_the_same_group(self, lag):
        groups = np.concatenate([self.codes[epoch_of(plan_of(self.codes, 32), epoch)[0][:, 0]] for epoch in range(10)])
        same_group = np.mean(groups[lag:] == groups[:-lag])
        # By chance 0.01. A block of 128 sentences holds 8 of each window, as far apart as possible.
        assert same_group < 0.07

    def test_every_cell_is_visited_early_and_late(self):
        plan = plan_of(self.codes, 32)
        when = np.stack([self._when(plan, epoch) for epoch in range(40)])
        assert np.abs(when.mean(axis=0) - 0.5).max() < 0.26  # sd of a mean of 40: 0.046
        assert abs(when.std() - np.sqrt(1 / 12)) < 0.01
        lags = [np.corrcoef(one, other)[0, 1] for one, other in pairwise(when)]
        assert np.abs(lags).max() < 0.25  # the 100 groups move as a whole, so sd 0.1
        assert abs(np.mean(lags)) < 0.06

    @staticmethod
    def _when(plan, epoch):
        cells, is_padding = epoch_of(plan, epoch)
        position = np.empty(250 * 100)
        position[cells[~is_padding]] = np.arange(cells.size).reshape(cells.shape)[~is_padding] / cells.size
        return position
