"""Plans of sentences: which cells come when. Pure arithmetic; nothing here reads a store.

A plan is a function of (seed, epoch, step, host), and what it costs depends on the number of groups.
It arranges an epoch so that reading is cheap and yet everything is mixed, on four levels:

1. Each group's cells are cut into *stretches* of 64 neighbours, from a new starting point each epoch, and
   the stretches are put in a new order. A stretch is one contiguous read.
2. Up to 256 cells in that order are a *window*, and change places within it. Sentences are cut from windows.
3. All windows of all groups are put in a new order.
4. Some windows that follow each other, about `shuffle_size` cells, are a *block*, which is read at once.
   Its sentences change places, those of one window as far apart as can be.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.randomness import counter_hash, generator, permute_index
from lazypert._internal.validation import require_choice, require_flag, require_integer
from lazypert.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.screen.rows import Rows

STRETCH = 64
"""Neighbouring cells that stay together: of their chunks, little is decoded in vain."""

WINDOW = 256
"""Cells of a group that change places (one sentence, where that is longer)."""

BALANCES = ("group", "perturbation", "cell_type")

# What the random numbers of an epoch are for.
_ORDER, _FILL, _TURN, _STRETCHES, _CELLS, _SENTENCES, _SHARE, _SUBSET = range(8)


@dataclass(frozen=True, slots=True, kw_only=True)
class PerturbationSamplerConfig:
    """Options of `PerturbationBatchSampler`.

    Parameters
    ----------
    sentence_size
        Cells a sentence, all of one group.
    sentences_per_batch
        Sentences a batch.
    seed
        With the epoch, decides everything.
    drop_last
        Leave out the last batch of an epoch when it has fewer sentences.
    downsample_cells
        At most so many cells of a group, the same ones every epoch; None takes all.
    shuffle_size
        Cells that are read together, and whose sentences change places. More mixes better and takes
        more memory (about 14 KB for each cell with 3,500 genes detected). At least one batch is read.
    balance
        None visits every cell once an epoch. ``"group"``, ``"perturbation"`` or ``"cell_type"`` give
        each group, perturbation or cell type as many sentences as any other, of as many as None
        gives together: small ones are gone through several times, large ones in part.
    """

    sentence_size: int = 512
    sentences_per_batch: int = 1
    seed: int = 42
    drop_last: bool = False
    downsample_cells: int | None = None
    shuffle_size: int = 4096
    balance: str | None = None

    def __post_init__(self) -> None:
        for name in ("sentence_size", "sentences_per_batch", "shuffle_size"):
            # Of NumPy's integers, JSON knows nothing, and states of loaders hold these.
            object.__setattr__(self, name, require_integer(name, getattr(self, name), 1))
        object.__setattr__(self, "seed", require_integer("seed", self.seed))
        object.__setattr__(self, "drop_last", require_flag("drop_last", self.drop_last))
        if self.downsample_cells is not None:
            object.__setattr__(self, "downsample_cells", require_integer("downsample_cells", self.downsample_cells, 1))
        if self.balance is not None:
            require_choice("balance", self.balance, BALANCES)

    @property
    def batches_per_block(self) -> int:
        """Batches that are read together."""
        return max(1, self.shuffle_size // (self.sentence_size * self.sentences_per_batch))

    @property
    def sentences_per_window(self) -> int:
        """Sentences that are cut from cells that change places with each other."""
        return max(1, WINDOW // self.sentence_size)


def _check_shares(config: PerturbationSamplerConfig, *, shuffle: bool, weights: object = None) -> None:
    if config.balance is not None and weights is not None:
        raise ConfigError(f"balance: got {config.balance!r} together with weights, expected one of them.")
    if not shuffle and (config.balance is not None or weights is not None):
        name = "balance" if weights is None else "weights"
        raise ConfigError(f"{name}: needs shuffle=True; in evaluation every cell comes once.")


@dataclass(frozen=True, eq=False)
class SentencePlan:
    """Sentences over the cells of a split.

    Cells are numbered by their place in the split. A group's last sentence is filled up by drawing from
    the cells around it, and the drawn cells are flagged.

    Attributes
    ----------
    config
        Sizes and seed.
    first, size
        (n_groups,) each group's cells are ``first`` to ``first + size`` of the split.
    place
        (n_cells,) place of each cell in the split when the split is not sorted by group, else None.
    shuffle
        False for evaluation: groups in order, from their first cell.
    weights
        (n_groups,) how much of an epoch each group gets; None visits every cell once.
    """

    config: PerturbationSamplerConfig
    first: NDArray[np.int64]
    size: NDArray[np.int64]
    place: NDArray[np.int64] | None = None
    shuffle: bool = True
    weights: NDArray[np.float64] | None = None

    @classmethod
    def from_codes(cls, config: PerturbationSamplerConfig, codes: Any, *, shuffle: bool = True) -> SentencePlan:
        """Plan over cells given by (n_cells,) group codes; negative codes belong to no group."""
        if config.balance not in (None, "group"):
            raise ConfigError(f"balance: got {config.balance!r}, and group codes alone allow only None or 'group'.")
        _check_shares(config, shuffle=shuffle)
        codes = np.asarray(codes)
        place = np.argsort(codes, kind="stable")
        place = place[codes[place] >= 0]
        ordered = codes[place]
        first = np.flatnonzero(np.diff(ordered, prepend=-1) != 0)
        size = np.diff(np.append(first, len(ordered)))
        sorted_already = len(place) == len(codes) and bool((place == np.arange(len(place))).all())
        weights = None if config.balance is None else np.ones(len(first))
        return cls(config, first, size, None if sorted_already else place, shuffle, weights)

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
        """Plan over a split's rows, which are sorted by group: takes the run table only.

        Parameters
        ----------
        weights
            (n_perturbations,) how much of an epoch the groups of each perturbation get.

        Raises
        ------
        ConfigError
            When `weights` or a balance come without shuffling or together, or the split has no cell of
            what has a weight.
        """
        _check_shares(config, shuffle=shuffle, weights=weights)
        run = groups.run_of(rows.starts)
        ids = (groups.batch_ids if by_batch else groups.ids)[run]
        lengths = rows.stops - rows.starts
        change = np.flatnonzero(np.diff(ids, prepend=-2) != 0)
        ends = np.cumsum(lengths)
        first = np.concatenate([[0], ends])[change].astype(np.int64)
        of_group = {axis: groups.codes[axis][run[change]] for axis in ("perturbation", "cell_type")}
        share = None
        if weights is not None:
            share = np.asarray(weights, dtype=np.float64)[of_group["perturbation"]]
            if len(share) and not share.sum() > 0:
                raise ConfigError("weights: none of the perturbations with a weight above 0 is in this split.")
        elif config.balance is not None:
            share = np.ones(len(change))
            if config.balance in of_group:
                kind = of_group[config.balance]
                share /= np.bincount(kind, minlength=1)[kind]
        return cls(config, first, np.diff(np.append(first, ends[-1:])), None, shuffle, share)

    @cached_property
    def used(self) -> NDArray[np.int64]:
        """(n_groups,) cells of each group that are gone through."""
        limit = self.config.downsample_cells
        return self.size if limit is None else np.minimum(self.size, limit)

    @cached_property
    def _lap(self) -> NDArray[np.int64]:
        """(n_groups,) sentences that visit each cell of the group once."""
        return -(-self.used // self.config.sentence_size)

    @property
    def n_sentences(self) -> int:
        """Sentences an epoch, of all hosts together."""
        return int(self._lap.sum())

    def __len__(self) -> int:
        per_batch = self.config.sentences_per_batch
        return self.n_sentences // per_batch if self.config.drop_last else -(-self.n_sentences // per_batch)

    def epoch(self, number: int, *, host: int = 0, n_hosts: int = 1) -> Epoch:
        """Arrange an epoch, or the part of it that one of several hosts goes through."""
        visits = self._visits(number)
        per_window, per_lap = self.config.sentences_per_window, -(-self._lap // self.config.sentences_per_window)
        laps, rest = np.divmod(visits, np.maximum(self._lap, 1))
        windows = laps * per_lap + -(-rest // per_window)
        group = np.repeat(np.arange(len(windows)), windows)
        within = np.arange(len(group)) - np.repeat(np.cumsum(windows) - windows, windows)
        lap, window = np.divmod(within, per_lap[group]) if len(group) else (within, within)
        first = window * per_window  # its first sentence in the lap
        count = np.minimum(per_window, self._lap[group] - first)
        count = np.minimum(count, visits[group] - lap * self._lap[group] - first)
        order = np.arange(len(group))
        if self.shuffle:
            order = generator(self.config.seed, number, _ORDER).permutation(len(group))
        dealt, n_batches = _deal(count[order], n_hosts, host, self.config)
        is_idle = n_batches > 0 and not len(dealt)
        mine = order[:1] if is_idle else order[dealt]
        return Epoch(self, number, group[mine], lap[mine], first[mine], np.cumsum(count[mine]), n_batches, is_idle)

    def _visits(self, epoch: int) -> NDArray[np.int64]:
        """(n_groups,) sentences of each group: as many together as without weights."""
        if self.weights is None or not self.shuffle or not len(self.size):
            return self._lap
        share = np.cumsum(self.weights / self.weights.sum()) * self.n_sentences
        share[-1] = self.n_sentences
        # Systematic sampling: each group gets its share rounded down or up, and on average exactly.
        start = int(counter_hash((self.config.seed, epoch, _SHARE), np.zeros(1, np.int64))[0] >> np.uint64(11)) / 2**53
        upto = np.floor(share + start).astype(np.int64)
        return upto - np.concatenate([[0], upto[:-1]])

    def cells(
        self,
        group: NDArray[np.int64],
        lap: NDArray[np.int64],
        sentence: NDArray[np.int64],
        epoch: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Cells of sentences.

        Parameters
        ----------
        group, lap, sentence
            (n,) group, round through the group in this epoch, and number of the sentence in the round.

        Returns
        -------
        cells
            (n, sentence_size) int64 places in the split.
        is_padding
            (n, sentence_size) bool: the cell only fills up a short sentence.
        """
        seed, length = self.config.seed, self.config.sentence_size
        used, size = self.used[group][:, None], self.size[group][:, None]
        window = self.config.sentences_per_window * length
        turn_id = (group + lap * len(self.size))[:, None]
        cell = sentence[:, None] * length + np.arange(length)
        start = cell // window * window
        count = np.minimum(window, used - start)
        is_padding = cell >= used
        drawn = counter_hash((seed, epoch, _FILL), turn_id * window * 4 + cell) % count.astype(np.uint64)
        cell = np.where(is_padding, drawn.astype(np.int64), cell - start)
        if self.shuffle:
            cell = permute_index((seed, epoch, _CELLS), turn_id * len(self.size) + start, cell, count)
            stretch, within = np.divmod(start + cell, STRETCH)
            # The last stretch, when it is a short one, stays the last: where that is, the turn decides.
            whole = used // STRETCH
            moved = permute_index((seed, epoch, _STRETCHES), turn_id, np.minimum(stretch, whole - 1), whole)
            cell = np.where(stretch < whole, moved, stretch) * STRETCH + within
            turn = counter_hash((seed, epoch, _TURN), turn_id) % used.astype(np.uint64)
            cell = (cell + turn.astype(np.int64)) % used
        else:
            cell = start + cell
        # The part of a group that is used when not all is: the same every epoch.
        subset = (counter_hash((seed, _SUBSET), group[:, None]) % size.astype(np.uint64)).astype(np.int64)
        cell = (cell + np.where(used < size, subset, 0)) % size
        cells = self.first[group][:, None] + cell
        return cells if self.place is None else self.place[cells], is_padding


@dataclass(frozen=True, eq=False)
class Epoch:
    """One host's way through an epoch: windows in order, and blocks and batches cut from them.

    Attributes
    ----------
    plan, number
        Of what, and which.
    group, lap, first
        (n_windows,) group of each window, round through the group, and first sentence in it.
    upto
        (n_windows,) sentences up to each window's end.
    n_batches
        Batches, as many for each host.
    is_idle
        There are more hosts than windows: this one gets another's, all of it as fillers.
    """

    plan: SentencePlan
    number: int
    group: NDArray[np.int64]
    lap: NDArray[np.int64]
    first: NDArray[np.int64]
    upto: NDArray[np.int64]
    n_batches: int
    is_idle: bool = False

    @property
    def n_sentences(self) -> int:
        """Sentences of this host."""
        return int(self.upto[-1]) if len(self.upto) and not self.is_idle else 0

    @property
    def n_blocks(self) -> int:
        """Blocks of ``config.batches_per_block`` batches; the last may have fewer."""
        return -(-self.n_batches // self.plan.config.batches_per_block)

    def block(self, number: int, *, fill: bool = True) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Cells of a block's sentences, batch by batch.

        Parameters
        ----------
        fill
            Fill up the epoch's last batch with sentences it has already, flagged as fillers.

        Returns
        -------
        cells
            (n_sentences, sentence_size) int64 places in the split.
        is_padding
            (n_sentences, sentence_size) bool.
        """
        config = self.plan.config
        per_block = config.batches_per_block * config.sentences_per_batch
        begin, end = number * per_block, min((number + 1) * per_block, self.n_batches * config.sentences_per_batch)
        at = np.arange(begin, max(begin, min(end, self.n_sentences)))
        if self.plan.shuffle and len(at):
            # The first sentences of all windows, then the second ones: those of one window are far apart.
            window = np.searchsorted(self.upto, at, side="right")
            nth = at - np.concatenate([[0], self.upto])[window]
            nth -= np.where(window == window[0], nth[0], 0)  # that window begins in the block before
            at = at[np.lexsort([counter_hash((config.seed, self.number, _SENTENCES), at), nth])]
        lacking = max(0, end - begin - len(at)) if fill else 0
        if lacking:
            whole = at if len(at) else np.arange(int(self.upto[-1]))
            at = np.concatenate([at, whole[np.arange(lacking) % len(whole)]])
        window = np.searchsorted(self.upto, at, side="right")
        sentence = self.first[window] + at - np.concatenate([[0], self.upto])[window]
        cells, is_padding = self.plan.cells(self.group[window], self.lap[window], sentence, self.number)
        is_padding[len(at) - lacking :] = True
        return cells, is_padding


def _deal(
    count: NDArray[np.int64], n_hosts: int, host: int, config: PerturbationSamplerConfig
) -> tuple[NDArray[np.int64], int]:
    """Windows that a host goes through, ascending, and the number of batches that every host makes of its own."""
    # Windows of many sentences are dealt first, so that what hosts have differs by one window at most.
    by_size = np.argsort(-count, kind="stable")
    dealt = [by_size[i::n_hosts] for i in range(n_hosts)]
    totals = np.array([int(count[mine].sum()) for mine in dealt])
    per_batch = config.sentences_per_batch
    n_batches = int(totals.min()) // per_batch if config.drop_last else -(-int(totals.max()) // per_batch)
    return np.sort(dealt[host]), n_batches


class PerturbationBatchSampler:
    """Batches of whole sentences, as lists of places in a split.

    Parameters
    ----------
    config
        Sizes and seed.
    group_codes
        (n_cells,) group code of every cell of the split, or a `SentencePlan`.

    Examples
    --------
    >>> sampler = PerturbationBatchSampler(PerturbationSamplerConfig(sentence_size=2), [0, 0, 1, 1])
    >>> sorted(map(sorted, sampler))
    [[0, 1], [2, 3]]
    """

    def __init__(self, config: PerturbationSamplerConfig, group_codes: Any) -> None:
        given = isinstance(group_codes, SentencePlan)
        self.plan: SentencePlan = group_codes if given else SentencePlan.from_codes(config, group_codes)
        self.config = config
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration runs through."""
        epoch = require_integer("epoch", epoch)
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[list[int]]:
        epoch, per_batch = self.plan.epoch(self.epoch), self.config.sentences_per_batch
        for number in range(epoch.n_blocks):
            cells, _ = epoch.block(number, fill=False)
            for start in range(0, len(cells), per_batch):
                yield cells[start : start + per_batch].ravel().tolist()
