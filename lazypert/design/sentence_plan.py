"""Plans of sentences: which cells are read when. Pure arithmetic; nothing here reads a store.

A plan is a function of (seed, epoch, step, host). It arranges an epoch so that reading is cheap and everything
is still mixed. The cells of a group are in random order, so cells that are read together are a fair sample of it.

1. Each group's cells are cut into *stretches* of consecutive cells, starting at another cell in each epoch,
   and the stretches are shuffled. A stretch is one contiguous read.
2. A few stretches in that order are a *window*, within which cells are shuffled, and from which sentences are
   cut. Small groups have windows of one sentence, so that neighbouring batches show many groups. Larger groups
   need longer windows to mix their cells from one epoch to the next.
3. The windows of all groups are shuffled.
4. Consecutive windows of about `shuffle_size` cells are a *block*, which is read at once. Its sentences are
   shuffled, those of one window as far apart as possible.

Sentences of one batch each are cut from a group that is read as a whole: their windows are of one batch, and the
windows of all batches of a group stay together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.randomness import counter_hash, counter_uniform, generator, permute_index
from lazypert.design.epoch_share import Epoch, assign_windows
from lazypert.design.mixing import Mixing
from lazypert.design.plan_groups import check_shares, divide_by_batch, n_conditions_of, share_of_group, with_size
from lazypert.design.sampler_config import padding_share
from lazypert.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.design.plan_groups import BatchOrder
    from lazypert.design.sampler_config import PerturbationSamplerConfig
    from lazypert.screen.groups import Groups
    from lazypert.screen.rows import Rows

_ODD = 0x9E3779B97F4A7  # spreads the numbers of windows over 64 bits

# Streams of random numbers in an epoch; 5 is used in `lazypert.design.epoch_share`.
_WINDOWS, _SHIFT, _STRETCHES, _CELLS = 0, 2, 3, 4
_SHARE, _SUBSET, _ORDER = 6, 7, 8


@dataclass(frozen=True, eq=False, repr=False)
class SentencePlan:
    """Sentences over the cells of a split.

    Cells are identified by their split index. A group's last sentence is padded with other cells of the group, or
    with repeats if there are too few, and the padding is flagged.

    Attributes
    ----------
    config
        Sizes and seed, with a sentence size.
    first, size
        (n_groups,) each group's cells are ``first`` to ``first + size`` of the cells in group order.
    split_index
        (n_cells,) split index of the cells in group order, or None if the split is in that order.
    shuffle
        False for evaluation: groups in order, each from its first cell.
    weights
        (n_groups,) relative share of an epoch for each group; None visits every cell once.
    pool
        (n_groups,) number of the cell type and dataset, whose controls the cells draw from; None if unknown.
    whole
        (n_groups,) number, and (n_groups,) size, of the larger group that is read as a whole for the sake of
        each group, ascending; None if each group is read by itself.
    """

    config: PerturbationSamplerConfig
    first: NDArray[np.int64]
    size: NDArray[np.int64]
    split_index: NDArray[np.int64] | BatchOrder | None = None
    shuffle: bool = True
    weights: NDArray[np.float64] | None = None
    pool: NDArray[np.int64] | None = None
    whole: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None

    @classmethod
    def from_codes(cls, config: PerturbationSamplerConfig, codes: Any, *, shuffle: bool = True) -> SentencePlan:
        """Plan over cells with the given (n_cells,) group codes; negative codes belong to no group.

        Cells may be in any order: for shuffled epochs, those of each group are put in a random order first.
        """
        if config.balance not in (None, "group"):
            raise ConfigError(f"balance: got {config.balance!r}, expected None or 'group' for a plan of group codes.")
        check_shares(config, shuffle=shuffle)
        codes = np.asarray(codes)
        tie = counter_hash((config.seed, _ORDER), np.arange(len(codes))) if shuffle else np.zeros(len(codes))
        split_index = np.lexsort((tie, codes))
        split_index = split_index[codes[split_index] >= 0]
        sorted_codes = codes[split_index]
        first = np.flatnonzero(np.diff(sorted_codes, prepend=-1) != 0)
        size = np.diff(np.append(first, len(sorted_codes)))
        is_sorted = len(split_index) == len(codes) and bool((split_index == np.arange(len(codes))).all())
        weights = None if config.balance is None else np.ones(len(first))
        return cls(with_size(config, size), first, size, None if is_sorted else split_index, shuffle, weights)

    @classmethod
    def from_rows(
        cls,
        config: PerturbationSamplerConfig,
        groups: Groups,
        rows: Rows,
        *,
        by_batch: bool = False,
        shuffle: bool = True,
        weights: NDArray[np.floating] | None = None,
    ) -> SentencePlan:
        """Plan over a split's rows, which are sorted by run. A sentence is of one run: a group and a dataset.

        A group is a cell type, a perturbation and, with covariates, a condition.

        Parameters
        ----------
        by_batch
            Make sentences of one batch each. This needs the batch of every cell, and otherwise only the run
            table is used.
        weights
            (n_perturbations,) relative share of an epoch for each perturbation in each cell type; its conditions get
            equal parts of it.

        Raises
        ------
        ConfigError
            If `weights` or a balance are given without shuffling, or together, or the split has no cell of
            a perturbation with a weight.
        """
        check_shares(config, shuffle=shuffle, weights=weights)
        interval_run = groups.run_of(rows.starts)
        run_starts = np.flatnonzero(np.diff(interval_run, prepend=-1) != 0)
        ends = np.cumsum(rows.stops - rows.starts)
        first = np.concatenate([[0], ends])[run_starts].astype(np.int64)
        size = np.diff(np.append(first, ends[-1:]))
        run, whole = interval_run[run_starts], None
        split_index: NDArray[np.int64] | BatchOrder | None = None
        if by_batch:
            split_index, first, of_run, size_of_batch = divide_by_batch(groups, rows)
            number = np.searchsorted(run, of_run)
            run, size, whole = of_run, size_of_batch, (number, size[number])
        codes = {axis: groups.codes[axis][run] for axis in ("perturbation", "cell_type")}
        shares = None
        if weights is not None:
            shares = np.asarray(weights, dtype=np.float64)[codes["perturbation"]] / n_conditions_of(groups, run)
            shares *= share_of_group(groups.ids[run], size)
            if len(shares) and not shares.sum() > 0:
                raise ConfigError("weights: none of the perturbations with a weight above 0 is in this split.")
        elif config.balance is not None:
            shares = share_of_group(groups.ids[run], size)
            if config.balance in codes:
                code = codes[config.balance]
                shares /= np.bincount(code, weights=shares, minlength=1)[code]
        config = with_size(config, size)
        return cls(config, first, size, split_index, shuffle, shares, groups.matching_ids[run], whole)

    @cached_property
    def n_visited(self) -> NDArray[np.int64]:
        """(n_groups,) number of cells that one visit to each group covers."""
        limit = self.config.downsample_cells
        return self.size if limit is None else np.minimum(self.size, limit)

    @cached_property
    def _sentences_per_visit(self) -> NDArray[np.int64]:
        """(n_groups,) number of sentences in one visit to each group."""
        return -(-self.n_visited // self.sentence_size)

    @property
    def sentence_size(self) -> int:
        """Cells per sentence."""
        assert self.config.sentence_size is not None
        return self.config.sentence_size

    @property
    def batches_per_block(self) -> int:
        """Batches that are read together."""
        return max(1, self.config.shuffle_size // (self.sentence_size * self.config.sentences_per_batch))

    @property
    def padding_share(self) -> float:
        """Share of the cells of an epoch that only pad short sentences; that of one visit to each group."""
        return padding_share(self.n_visited, self.sentence_size)

    @property
    def n_sentences(self) -> int:
        """Sentences per epoch, over all hosts."""
        return int(self._sentences_per_visit.sum())

    def __len__(self) -> int:
        per_batch = self.config.sentences_per_batch
        return self.n_sentences // per_batch if self.config.drop_last else -(-self.n_sentences // per_batch)

    def __repr__(self) -> str:
        return f"SentencePlan({self.n_sentences:,} sentences of {len(self.size):,} groups; {self.config!r})"

    @cached_property
    def mixing(self) -> Mixing:
        """How the cells of each group are mixed."""
        if self.whole is None:
            return Mixing.of_groups(self.n_visited, self.sentence_size)
        return Mixing.of_batches(self.n_visited, self.whole[1], self.sentence_size)

    def epoch(self, number: int, *, host: int = 0, n_hosts: int = 1) -> Epoch:
        """Arrange an epoch, or one host's share of it."""
        per_visit, per_window = self._sentences_per_visit, self.mixing.sentences_per_window
        windows_per_visit = -(-per_visit // per_window)
        n_sentences = self._sentences_of_groups(number)
        full_visits, remainder = np.divmod(n_sentences, np.maximum(per_visit, 1))
        n_windows = full_visits * windows_per_visit + -(-remainder // per_window)
        group = np.repeat(np.arange(len(n_windows)), n_windows)
        window = np.arange(len(group)) - np.repeat(np.cumsum(n_windows) - n_windows, n_windows)
        visit, window = np.divmod(window, windows_per_visit[group]) if len(group) else (window, window)
        first_sentence = window * per_window[group]
        count = np.minimum(per_window[group], per_visit[group] - first_sentence)
        count = np.minimum(count, n_sentences[group] - visit * per_visit[group] - first_sentence)
        bundle = self._bundles(group, visit, window)
        n_bundles = int(bundle.max(initial=-1)) + 1
        bundle_order = np.arange(n_bundles)
        if self.shuffle:
            bundle_order = generator(self.config.seed, number, _WINDOWS).permutation(n_bundles)
        per_bundle = np.bincount(bundle, weights=count, minlength=n_bundles).astype(np.int64)
        assigned, n_batches = assign_windows(
            per_bundle[bundle_order],
            n_hosts,
            host,
            sentences_per_batch=self.config.sentences_per_batch,
            drop_last=self.config.drop_last,
        )
        is_idle = n_batches > 0 and not len(assigned)
        if is_idle:
            assigned = np.zeros(1, dtype=np.int64)
        place = np.full(n_bundles, -1)
        place[bundle_order[assigned]] = np.arange(len(assigned))
        mine = np.flatnonzero(place[bundle] >= 0)
        mine = mine[np.argsort(place[bundle[mine]], kind="stable")]
        return Epoch(
            self,
            number,
            group[mine],
            visit[mine],
            first_sentence[mine],
            self._phases(group, bundle, bundle_order)[mine],
            np.cumsum(count[mine]),
            n_batches,
            is_idle,
        )

    def _phases(
        self, group: NDArray[np.int64], bundle: NDArray[np.int64], bundle_order: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """(n_windows,) how far through the epoch each window comes; in evaluation, through the windows of its pool."""
        if self.shuffle or self.pool is None:
            phase = np.empty(len(bundle_order))
            phase[bundle_order] = np.arange(len(bundle_order)) / max(1, len(bundle_order))
            return phase[bundle]
        _, pool, n_windows = np.unique(self.pool[group], return_inverse=True, return_counts=True)
        order = np.lexsort((bundle, pool))  # bundles come in the order of their numbers
        nth = np.empty(len(group))
        nth[order] = np.arange(len(group)) - np.repeat(np.cumsum(n_windows) - n_windows, n_windows)
        return nth / n_windows[pool]

    def _bundles(
        self, group: NDArray[np.int64], visit: NDArray[np.int64], window: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """(n_windows,) number of the bundle of windows that each stays together with."""
        if self.whole is None:
            return np.arange(len(group))
        keys = np.stack([self.whole[0][group], visit, window])
        return np.unique(keys, axis=1, return_inverse=True)[1].reshape(-1)

    def _sentences_of_groups(self, epoch: int) -> NDArray[np.int64]:
        """(n_groups,) sentences of each group in an epoch; with weights, as many in total as without."""
        if self.weights is None or not self.shuffle or not len(self.size):
            return self._sentences_per_visit
        shares = np.cumsum(self.weights / self.weights.sum()) * self.n_sentences
        shares[-1] = self.n_sentences
        # Systematic sampling: each group gets its share rounded down or up, and exactly its share on average.
        begin = counter_uniform((self.config.seed, epoch, _SHARE), np.zeros(1, np.int64))
        ends = np.floor(shares + begin).astype(np.int64)
        return ends - np.concatenate([[0], ends[:-1]])

    def cells(
        self,
        group: NDArray[np.int64],
        visit: NDArray[np.int64],
        sentence: NDArray[np.int64],
        epoch: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
        """Return the cells of sentences.

        Parameters
        ----------
        group, visit, sentence
            (n,) group, number of the visit to it in this epoch, and number of the sentence in that visit.

        Returns
        -------
        cells
            (n, sentence_size) int64 split indices.
        is_padding
            (n, sentence_size) bool: the cell only pads a short sentence.
        draw
            (n, sentence_size) int64: which of a cell's occurrences in the epoch this is. No two have the same
            number, and it depends neither on hosts nor on the size of blocks.
        """
        seed, length = self.config.seed, self.sentence_size
        n_visited, size = self.n_visited[group][:, None], self.size[group][:, None]
        window_size = (self.mixing.sentences_per_window[group] * length)[:, None]
        visit_id = (group + visit * len(self.size))[:, None]
        ordinal = sentence[:, None] * length + np.arange(length)
        is_padding, cell = ordinal >= n_visited, ordinal % n_visited
        if self.shuffle:
            window_start = cell // window_size * window_size
            count = np.minimum(window_size, n_visited - window_start)
            cell = permute_index((seed, epoch, _CELLS), visit_id + window_start * _ODD, cell - window_start, count)
            cell = self._shuffle_stretches(window_start + cell, group, visit_id, epoch)
            shift_id = visit_id if self.whole is None else (self.whole[0][group] + visit * len(self.size))[:, None]
            shift = (counter_uniform((seed, epoch, _SHIFT), shift_id) * n_visited).astype(np.int64)
            cell = (cell + shift) % n_visited
        # Where only some cells of a group are visited, they are the same ones in every epoch.
        subset_start = (counter_hash((seed, _SUBSET), group[:, None]) % size.astype(np.uint64)).astype(np.int64)
        cell = (cell + np.where(n_visited < size, subset_start, 0)) % size
        cells = self.first[group][:, None] + cell
        draw = ordinal // n_visited + visit[:, None] * length
        if self.split_index is not None:
            cells = self.split_index[cells]
        return cells, is_padding, draw

    def _shuffle_stretches(
        self, cell: NDArray[np.int64], group: NDArray[np.int64], visit_id: NDArray[np.int64], epoch: int
    ) -> NDArray[np.int64]:
        """Move each cell to where its stretch is. A short last stretch stays last; the shift decides what is in it."""
        length = self.mixing.stretch[group][:, None]
        stretch, within = np.divmod(cell, length)
        n_full = self.n_visited[group][:, None] // length
        words = (self.config.seed, epoch, _STRETCHES)
        moved = permute_index(words, visit_id, np.clip(stretch, 0, np.maximum(n_full - 1, 0)), n_full)
        return np.where(stretch < n_full, moved, stretch) * length + within
