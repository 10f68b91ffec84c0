"""Plans of sentences: which cells come when. Pure arithmetic; nothing here reads a store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert.errors import ConfigError
from lazypert.rng import generator, hashed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lazypert.groups import Groups
    from lazypert.rows import Rows


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
    """

    sentence_size: int = 512
    sentences_per_batch: int = 1
    seed: int = 42
    drop_last: bool = False
    downsample_cells: int | None = None

    def __post_init__(self) -> None:
        for name in ("sentence_size", "sentences_per_batch"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ConfigError(f"{name}: got {getattr(self, name)!r}, expected an integer of at least 1.")
        if self.downsample_cells is not None and self.downsample_cells < 1:
            raise ConfigError(f"downsample_cells: got {self.downsample_cells!r}, expected at least 1, or None.")
        if self.seed < 0:
            raise ConfigError(f"seed: got {self.seed!r}, expected a non-negative integer.")


@dataclass(frozen=True, eq=False, slots=True)
class SentencePlan:
    """Sentences over the cells of a split.

    Cells are numbered by their place in the split. Each epoch, every group is cut into sentences
    from a new starting point, and the sentences of all groups are shuffled; a group's last
    sentence is filled up by drawing from the group, and the drawn cells are flagged.

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
    """

    config: PerturbationSamplerConfig
    first: NDArray[np.int64]
    size: NDArray[np.int64]
    place: NDArray[np.int64] | None = None
    shuffle: bool = True

    @classmethod
    def from_codes(cls, config: PerturbationSamplerConfig, codes: Any, *, shuffle: bool = True) -> SentencePlan:
        """Plan over cells given by (n_cells,) group codes; negative codes belong to no group."""
        codes = np.asarray(codes)
        place = np.argsort(codes, kind="stable")
        place = place[codes[place] >= 0]
        ordered = codes[place]
        first = np.flatnonzero(np.diff(ordered, prepend=-1) != 0)
        size = np.diff(np.append(first, len(ordered)))
        sorted_already = len(place) == len(codes) and bool((place == np.arange(len(place))).all())
        return cls(config, first, size, None if sorted_already else place, shuffle)

    @classmethod
    def from_rows(
        cls,
        config: PerturbationSamplerConfig,
        groups: Groups,
        rows: Rows,
        *,
        by_batch: bool = False,
        shuffle: bool = True,
    ) -> SentencePlan:
        """Plan over a split's rows, which are sorted by group: takes the run table only."""
        ids = (groups.batch_ids if by_batch else groups.ids)[groups.run_of(rows.starts)]
        lengths = rows.stops - rows.starts
        change = np.flatnonzero(np.diff(ids, prepend=-2) != 0)
        ends = np.cumsum(lengths)
        first = np.concatenate([[0], ends])[change].astype(np.int64)
        return cls(config, first, np.diff(np.append(first, ends[-1:])), None, shuffle)

    @property
    def used(self) -> NDArray[np.int64]:
        """(n_groups,) cells of each group that an epoch visits."""
        limit = self.config.downsample_cells
        return self.size if limit is None else np.minimum(self.size, limit)

    @property
    def _upto(self) -> NDArray[np.int64]:
        return np.cumsum(-(-self.used // self.config.sentence_size))

    @property
    def n_sentences(self) -> int:
        """Sentences an epoch."""
        return int(self._upto[-1]) if len(self.size) else 0

    def __len__(self) -> int:
        per_batch = self.config.sentences_per_batch
        return self.n_sentences // per_batch if self.config.drop_last else -(-self.n_sentences // per_batch)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """(n_sentences,) sentence numbers in the order of an epoch."""
        if not self.shuffle:
            return np.arange(self.n_sentences)
        return generator(self.config.seed, epoch, 0).permutation(self.n_sentences)

    def sentences(self, numbers: NDArray[np.integer], epoch: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Cells of sentences.

        Returns
        -------
        cells
            (n, sentence_size) int64 places in the split.
        is_filler
            (n, sentence_size) bool: the cell only fills up a short sentence.
        """
        length = self.config.sentence_size
        upto = self._upto
        group = np.searchsorted(upto, numbers, side="right")
        within = numbers - np.concatenate([[0], upto])[group]
        used, size = self.used[group], self.size[group]
        step = within[:, None] * length + np.arange(length)
        is_filler = step >= used[:, None]
        counter = np.asarray(numbers)[:, None] * length + np.arange(length)
        drawn = (hashed((self.config.seed, epoch, 1), counter) % used[:, None].astype(np.uint64)).astype(np.int64)
        step = np.where(is_filler, drawn, step)
        if self.shuffle:
            turn = hashed((self.config.seed, epoch, 2), group) % used.astype(np.uint64)
            step = (step + turn.astype(np.int64)[:, None]) % used[:, None]
        # The window of a group that is used when only a part is: the same every epoch.
        window = (hashed((self.config.seed, 3), group) % size.astype(np.uint64)).astype(np.int64)
        window = np.where(used < size, window, 0)
        cells = self.first[group][:, None] + (step + window[:, None]) % size[:, None]
        return cells if self.place is None else self.place[cells], is_filler

    def batch(
        self, step: int, epoch: int, order: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Cells of one batch: (n_sentences, sentence_size) places, and which are fillers."""
        per_batch = self.config.sentences_per_batch
        order = self.order(epoch) if order is None else order
        return self.sentences(order[step * per_batch : (step + 1) * per_batch], epoch)


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
        if epoch < 0:
            raise ConfigError(f"epoch: got {epoch!r}, expected a non-negative integer.")
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[list[int]]:
        order = self.plan.order(self.epoch)
        for step in range(len(self.plan)):
            cells, _ = self.plan.batch(step, self.epoch, order)
            yield cells.ravel().tolist()
