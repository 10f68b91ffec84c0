"""One host's share of an epoch: its windows, and the blocks and batches cut from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lazypert._internal.randomness import counter_hash

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.design.sentence_plan import SentencePlan

# Stream of random numbers; the others of an epoch are in `lazypert.design.sentence_plan`.
_SENTENCES = 5


class Sentences(NamedTuple):
    """Sentences of one block.

    Attributes
    ----------
    cells
        (n_sentences, sentence_size) int64 split indices.
    is_padding
        (n_sentences, sentence_size) bool: the cell only pads a short sentence or batch.
    draw
        (n_sentences, sentence_size) int64 number of the occurrence of the cell in the epoch.
    phase
        (n_sentences,) how far through the epoch each comes, from 0 to below 1.
    """

    cells: NDArray[np.int64]
    is_padding: NDArray[np.bool_]
    draw: NDArray[np.int64]
    phase: NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class Epoch:
    """One host's windows of an epoch, in order.

    Attributes
    ----------
    plan, number
        The plan, and the number of the epoch.
    group, visit, first_sentence
        (n_windows,) group of each window, number of the visit to the group, and first sentence of the visit.
    phase
        (n_windows,) how far through the epoch of all hosts together each window comes, from 0 to below 1.
    ends
        (n_windows,) number of sentences up to the end of each window.
    n_batches
        Number of batches, the same for every host.
    is_idle
        Whether there are more hosts than windows, so that this host repeats another's window as padding.
    """

    plan: SentencePlan
    number: int
    group: NDArray[np.int64]
    visit: NDArray[np.int64]
    first_sentence: NDArray[np.int64]
    phase: NDArray[np.float64]
    ends: NDArray[np.int64]
    n_batches: int
    is_idle: bool = False

    @property
    def n_sentences(self) -> int:
        """Number of sentences of this host."""
        return int(self.ends[-1]) if len(self.ends) and not self.is_idle else 0

    @property
    def n_blocks(self) -> int:
        """Number of blocks of ``plan.batches_per_block`` batches; the last one may have fewer."""
        return -(-self.n_batches // self.plan.batches_per_block)

    def __repr__(self) -> str:
        return f"Epoch({self.number}: {self.n_sentences:,} sentences in {self.n_batches:,} batches)"

    def block(self, number: int, *, fill: bool = True) -> Sentences:
        """Cells of a block's sentences, batch by batch.

        Parameters
        ----------
        fill
            Pad the epoch's last batch by repeating sentences, flagged as padding.
        """
        config = self.plan.config
        per_block = self.plan.batches_per_block * config.sentences_per_batch
        begin, end = number * per_block, min((number + 1) * per_block, self.n_batches * config.sentences_per_batch)
        index = np.arange(begin, max(begin, min(end, self.n_sentences)))
        if self.plan.shuffle and len(index):
            # The first sentence of each window, then the second ones, and so on: those of one window are far apart.
            window, nth = self._in_windows(index)
            nth -= np.where(window == window[0], nth[0], 0)  # the first window may begin in the previous block
            index = index[np.lexsort([counter_hash((config.seed, self.number, _SENTENCES), index), nth])]
        n_lacking = max(0, end - begin - len(index)) if fill else 0
        if n_lacking:
            repeated = index if len(index) else np.arange(int(self.ends[-1]))
            index = np.concatenate([index, repeated[np.arange(n_lacking) % len(repeated)]])
        window, nth = self._in_windows(index)
        sentence = self.first_sentence[window] + nth
        cells, is_padding, draw = self.plan.cells(self.group[window], self.visit[window], sentence, self.number)
        is_padding[len(index) - n_lacking :] = True
        return Sentences(cells, is_padding, draw, self.phase[window])

    def _in_windows(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Window of each of the host's sentences, and the sentence's number within its window."""
        window = np.searchsorted(self.ends, index, side="right")
        return window, index - np.concatenate([[0], self.ends])[window]


def assign_windows(
    n_sentences: NDArray[np.int64], n_hosts: int, host: int, *, sentences_per_batch: int, drop_last: bool
) -> tuple[NDArray[np.int64], int]:
    """Assign windows to a host.

    Parameters
    ----------
    n_sentences
        (n_windows,) sentences in each window.

    Returns
    -------
    windows
        Windows of the host, ascending.
    n_batches
        Number of batches that every host yields.
    """
    # Windows with many sentences are dealt out first, so that hosts differ by one window at most.
    by_size = np.argsort(-n_sentences, kind="stable")
    windows = [by_size[i::n_hosts] for i in range(n_hosts)]
    totals = np.array([int(n_sentences[mine].sum()) for mine in windows])
    n_batches = int(totals.min()) // sentences_per_batch if drop_last else -(-int(totals.max()) // sentences_per_batch)
    return np.sort(windows[host]), n_batches
