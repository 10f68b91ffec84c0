"""Plans of sentences: which cells are read when. Pure arithmetic; nothing here reads a store.

A plan is a function of (seed, epoch, step, host), and its cost depends on the number of groups. It
arranges an epoch so that reading is cheap and everything is still mixed, on four levels:

1. Each group's cells are cut into *stretches* of 64 consecutive cells, starting at a different cell in each
   epoch, and the stretches are shuffled. A stretch is one contiguous read.
2. Up to 256 cells in that order form a *window*, within which cells are shuffled. Sentences are cut from
   windows.
3. The windows of all groups are shuffled.
4. Consecutive windows of about `shuffle_size` cells form a *block*, which is read at once. Its sentences are
   shuffled, with those of one window as far apart as possible.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np

from lazypert._internal.config import Config
from lazypert._internal.randomness import counter_hash, generator, permute_index
from lazypert._internal.validation import require_choice, require_flag, require_integer
from lazypert.design.epoch_share import Epoch, assign_windows
from lazypert.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.screen.rows import Rows

Balance = Literal["group", "perturbation", "cell_type"]

STRETCH_SIZE = 64
"""Consecutive cells that stay together, so that most of what is decoded for them is used."""

WINDOW_SIZE = 256
"""Cells of a group that are shuffled together (one sentence, if that is longer)."""

# Streams of random numbers in an epoch; 5 is used in `lazypert.design.epoch_share`.
_WINDOWS, _PADDING, _SHIFT, _STRETCHES, _CELLS = range(5)
_SHARE, _SUBSET = 6, 7


@dataclass(frozen=True, kw_only=True, repr=False)
class SentenceOptions(Config):
    """Options that samplers share with the pipeline; `PerturbationSamplerConfig` documents them."""

    sentence_size: int = 512
    sentences_per_batch: int = 1
    seed: int = 42


@dataclass(frozen=True, kw_only=True, repr=False)
class PerturbationSamplerConfig(SentenceOptions):
    """Options of `PerturbationBatchSampler`.

    Parameters
    ----------
    sentence_size
        Cells per sentence, all of one group.
    sentences_per_batch
        Sentences per batch.
    seed
        Determines everything, together with the epoch.
    drop_last
        Leave out the last batch of an epoch if it has fewer sentences.
    downsample_cells
        Use at most this many cells per group, the same ones in every epoch; None uses all.
    shuffle_size
        Size of the shuffle buffer in cells: they are read together, and their sentences shuffled. A larger
        buffer mixes better and takes more memory (about 14 KB per cell with 3,500 genes detected). It
        always holds at least one batch.
    balance
        None visits every cell once per epoch. ``"group"``, ``"perturbation"`` or ``"cell_type"`` give every
        group, perturbation or cell type the same number of sentences, and the epoch as many as with None:
        small groups are visited several times, large ones only in part.
    """

    drop_last: bool = False
    downsample_cells: int | None = None
    shuffle_size: int = 4096
    balance: Balance | None = None

    def __post_init__(self) -> None:
        # Loaders save these values in their state as JSON, which cannot represent NumPy integers.
        for name in ("sentence_size", "sentences_per_batch", "shuffle_size"):
            object.__setattr__(self, name, require_integer(name, getattr(self, name), 1))
        object.__setattr__(self, "seed", require_integer("seed", self.seed))
        object.__setattr__(self, "drop_last", require_flag("drop_last", self.drop_last))
        if self.downsample_cells is not None:
            object.__setattr__(self, "downsample_cells", require_integer("downsample_cells", self.downsample_cells, 1))
        if self.balance is not None:
            require_choice("balance", self.balance, Balance)

    @property
    def batches_per_block(self) -> int:
        """Batches that are read together."""
        return max(1, self.shuffle_size // (self.sentence_size * self.sentences_per_batch))

    @property
    def sentences_per_window(self) -> int:
        """Sentences cut from one window."""
        return max(1, WINDOW_SIZE // self.sentence_size)


class SamplerOptions(TypedDict, total=False):
    """The fields of `PerturbationSamplerConfig` as keyword arguments."""

    sentence_size: int
    sentences_per_batch: int
    seed: int
    drop_last: bool
    downsample_cells: int | None
    shuffle_size: int
    balance: Balance | None


def _check_shares(config: PerturbationSamplerConfig, *, shuffle: bool, weights: object = None) -> None:
    if config.balance is not None and weights is not None:
        raise ConfigError(f"balance: got {config.balance!r} together with weights, expected only one of them.")
    if not shuffle and (config.balance is not None or weights is not None):
        name = "balance" if weights is None else "weights"
        raise ConfigError(f"{name}: needs shuffle=True, because evaluation visits every cell once.")


@dataclass(frozen=True, eq=False, repr=False)
class SentencePlan:
    """Sentences over the cells of a split.

    Cells are identified by their split index. A group's last sentence is padded with cells drawn from those
    around it, and the padding is flagged.

    Attributes
    ----------
    config
        Sizes and seed.
    first, size
        (n_groups,) each group's cells are ``first`` to ``first + size`` of the cells in group order.
    split_index
        (n_cells,) split index of the cells in group order, or None if the split is in that order.
    shuffle
        False for evaluation: groups in order, each from its first cell.
    weights
        (n_groups,) relative share of an epoch for each group; None visits every cell once.
    """

    config: PerturbationSamplerConfig
    first: NDArray[np.int64]
    size: NDArray[np.int64]
    split_index: NDArray[np.int64] | None = None
    shuffle: bool = True
    weights: NDArray[np.float64] | None = None

    @classmethod
    def from_codes(cls, config: PerturbationSamplerConfig, codes: Any, *, shuffle: bool = True) -> SentencePlan:
        """Plan over cells with the given (n_cells,) group codes; negative codes belong to no group."""
        if config.balance not in (None, "group"):
            raise ConfigError(f"balance: got {config.balance!r}, expected None or 'group' for a plan of group codes.")
        _check_shares(config, shuffle=shuffle)
        codes = np.asarray(codes)
        split_index = np.argsort(codes, kind="stable")
        split_index = split_index[codes[split_index] >= 0]
        sorted_codes = codes[split_index]
        first = np.flatnonzero(np.diff(sorted_codes, prepend=-1) != 0)
        size = np.diff(np.append(first, len(sorted_codes)))
        is_sorted = len(split_index) == len(codes) and bool((split_index == np.arange(len(codes))).all())
        weights = None if config.balance is None else np.ones(len(first))
        return cls(config, first, size, None if is_sorted else split_index, shuffle, weights)

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
        """Plan over a split's rows, which are sorted by group: needs only the run table.

        Parameters
        ----------
        weights
            (n_perturbations,) relative share of an epoch for the groups of each perturbation.

        Raises
        ------
        ConfigError
            If `weights` or a balance are given without shuffling, or together, or the split has no cell of
            a perturbation with a weight.
        """
        _check_shares(config, shuffle=shuffle, weights=weights)
        run = groups.run_of(rows.starts)
        ids = (groups.batch_ids if by_batch else groups.ids)[run]
        lengths = rows.stops - rows.starts
        group_starts = np.flatnonzero(np.diff(ids, prepend=-2) != 0)
        ends = np.cumsum(lengths)
        first = np.concatenate([[0], ends])[group_starts].astype(np.int64)
        group_codes = {axis: groups.codes[axis][run[group_starts]] for axis in ("perturbation", "cell_type")}
        shares = None
        if weights is not None:
            shares = np.asarray(weights, dtype=np.float64)[group_codes["perturbation"]]
            if len(shares) and not shares.sum() > 0:
                raise ConfigError("weights: none of the perturbations with a weight above 0 is in this split.")
        elif config.balance is not None:
            shares = np.ones(len(group_starts))
            if config.balance in group_codes:
                code = group_codes[config.balance]
                shares /= np.bincount(code, minlength=1)[code]
        return cls(config, first, np.diff(np.append(first, ends[-1:])), None, shuffle, shares)

    @cached_property
    def n_visited(self) -> NDArray[np.int64]:
        """(n_groups,) number of cells that one visit to each group covers."""
        limit = self.config.downsample_cells
        return self.size if limit is None else np.minimum(self.size, limit)

    @cached_property
    def _sentences_per_visit(self) -> NDArray[np.int64]:
        """(n_groups,) number of sentences in one visit to each group."""
        return -(-self.n_visited // self.config.sentence_size)

    @property
    def n_sentences(self) -> int:
        """Sentences per epoch, over all hosts."""
        return int(self._sentences_per_visit.sum())

    def __len__(self) -> int:
        per_batch = self.config.sentences_per_batch
        return self.n_sentences // per_batch if self.config.drop_last else -(-self.n_sentences // per_batch)

    def __repr__(self) -> str:
        return f"SentencePlan({self.n_sentences:,} sentences of {len(self.size):,} groups; {self.config!r})"

    def epoch(self, number: int, *, host: int = 0, n_hosts: int = 1) -> Epoch:
        """Arrange an epoch, or one host's share of it."""
        per_visit, per_window = self._sentences_per_visit, self.config.sentences_per_window
        windows_per_visit = -(-per_visit // per_window)
        n_sentences = self._sentences_of_groups(number)
        full_visits, remainder = np.divmod(n_sentences, np.maximum(per_visit, 1))
        n_windows = full_visits * windows_per_visit + -(-remainder // per_window)
        group = np.repeat(np.arange(len(n_windows)), n_windows)
        window = np.arange(len(group)) - np.repeat(np.cumsum(n_windows) - n_windows, n_windows)
        visit, window = np.divmod(window, windows_per_visit[group]) if len(group) else (window, window)
        first_sentence = window * per_window
        count = np.minimum(per_window, per_visit[group] - first_sentence)
        count = np.minimum(count, n_sentences[group] - visit * per_visit[group] - first_sentence)
        window_order = np.arange(len(group))
        if self.shuffle:
            window_order = generator(self.config.seed, number, _WINDOWS).permutation(len(group))
        assigned, n_batches = assign_windows(
            count[window_order],
            n_hosts,
            host,
            sentences_per_batch=self.config.sentences_per_batch,
            drop_last=self.config.drop_last,
        )
        is_idle = n_batches > 0 and not len(assigned)
        mine = window_order[:1] if is_idle else window_order[assigned]
        ends = np.cumsum(count[mine])
        return Epoch(self, number, group[mine], visit[mine], first_sentence[mine], ends, n_batches, is_idle)

    def _sentences_of_groups(self, epoch: int) -> NDArray[np.int64]:
        """(n_groups,) sentences of each group in an epoch; with weights, as many in total as without."""
        if self.weights is None or not self.shuffle or not len(self.size):
            return self._sentences_per_visit
        shares = np.cumsum(self.weights / self.weights.sum()) * self.n_sentences
        shares[-1] = self.n_sentences
        # Systematic sampling: each group gets its share rounded down or up, and exactly its share on average.
        bits = counter_hash((self.config.seed, epoch, _SHARE), np.zeros(1, np.int64))[0] >> np.uint64(11)
        ends = np.floor(shares + int(bits) / 2**53).astype(np.int64)
        return ends - np.concatenate([[0], ends[:-1]])

    def cells(
        self,
        group: NDArray[np.int64],
        visit: NDArray[np.int64],
        sentence: NDArray[np.int64],
        epoch: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
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
        """
        seed, length = self.config.seed, self.config.sentence_size
        n_visited, size = self.n_visited[group][:, None], self.size[group][:, None]
        window_size = self.config.sentences_per_window * length
        visit_id = (group + visit * len(self.size))[:, None]
        cell = sentence[:, None] * length + np.arange(length)
        window_start = cell // window_size * window_size
        count = np.minimum(window_size, n_visited - window_start)
        is_padding = cell >= n_visited
        drawn = counter_hash((seed, epoch, _PADDING), visit_id * window_size * 4 + cell) % count.astype(np.uint64)
        cell = np.where(is_padding, drawn.astype(np.int64), cell - window_start)
        if self.shuffle:
            cell = permute_index((seed, epoch, _CELLS), visit_id * len(self.size) + window_start, cell, count)
            stretch, within = np.divmod(window_start + cell, STRETCH_SIZE)
            # A short last stretch stays last; the shift decides which cells are in it.
            n_full = n_visited // STRETCH_SIZE
            moved = permute_index((seed, epoch, _STRETCHES), visit_id, np.minimum(stretch, n_full - 1), n_full)
            cell = np.where(stretch < n_full, moved, stretch) * STRETCH_SIZE + within
            shift = counter_hash((seed, epoch, _SHIFT), visit_id) % n_visited.astype(np.uint64)
            cell = (cell + shift.astype(np.int64)) % n_visited
        else:
            cell = window_start + cell
        # Where only some cells of a group are visited, they are the same ones in every epoch.
        subset_start = (counter_hash((seed, _SUBSET), group[:, None]) % size.astype(np.uint64)).astype(np.int64)
        cell = (cell + np.where(n_visited < size, subset_start, 0)) % size
        cells = self.first[group][:, None] + cell
        return cells if self.split_index is None else self.split_index[cells], is_padding
