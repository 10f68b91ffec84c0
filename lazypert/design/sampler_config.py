"""Options of sentence plans and samplers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypedDict

import numpy as np

from lazypert._internal.config import Config
from lazypert._internal.validation import require_choice, require_flag, require_integer

if TYPE_CHECKING:
    from numpy.typing import NDArray

Balance = Literal["group", "perturbation", "cell_type"]


@dataclass(frozen=True, kw_only=True, repr=False)
class SentenceOptions(Config):
    """Options that samplers share with the pipeline; `PerturbationSamplerConfig` documents them."""

    sentence_size: int | None = None
    sentences_per_batch: int = 1
    seed: int = 42


@dataclass(frozen=True, kw_only=True, repr=False)
class PerturbationSamplerConfig(SentenceOptions):
    """Options of `PerturbationBatchSampler`.

    Parameters
    ----------
    sentence_size
        Cells per sentence, all of one group. None chooses it from the group sizes, so that at most a quarter of the
        cells are padding, or as few as possible; see `choose_sentence_size`.
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
        small groups are visited several times, large ones only in part. With covariates, each condition of a
        perturbation is a group: ``"group"`` counts conditions, and with ``"perturbation"`` the conditions of a
        perturbation share its part equally.
    """

    drop_last: bool = False
    downsample_cells: int | None = None
    shuffle_size: int = 4096
    balance: Balance | None = None

    def __post_init__(self) -> None:
        # Loaders save these values in their state as JSON, which cannot represent NumPy integers.
        for name in ("sentence_size", "sentences_per_batch", "shuffle_size"):
            if name != "sentence_size" or self.sentence_size is not None:
                object.__setattr__(self, name, require_integer(name, getattr(self, name), 1))
        object.__setattr__(self, "seed", require_integer("seed", self.seed))
        object.__setattr__(self, "drop_last", require_flag("drop_last", self.drop_last))
        if self.downsample_cells is not None:
            object.__setattr__(self, "downsample_cells", require_integer("downsample_cells", self.downsample_cells, 1))
        if self.balance is not None:
            require_choice("balance", self.balance, Balance)


def padding_share(sizes: NDArray[np.int64], sentence_size: int) -> float:
    """Share of the cells of all sentences that only pad the last sentence of a group, from (n_groups,) group sizes."""
    n_cells = int((-(-sizes // sentence_size)).sum()) * sentence_size
    return 1 - int(sizes.sum()) / n_cells if n_cells else 0.0


def choose_sentence_size(sizes: NDArray[np.int64]) -> int:
    """Choose the longest sentences that need little padding.

    Of 1 to 15 and the multiples of 8 from 16 to 512, up to the size of the largest group, choose the largest for which
    at most a quarter of the cells are padding; or if there is none, the largest of those with the least padding.

    Parameters
    ----------
    sizes
        (n_groups,) number of cells of each group.
    """
    largest = int(sizes.max(initial=1))
    candidates = [*range(1, min(15, largest) + 1), *range(16, min(512, -(-largest // 8) * 8) + 1, 8)]
    shares = np.array([padding_share(sizes, size) for size in candidates])
    return int(candidates[np.flatnonzero(shares <= max(0.25, shares.min()))[-1]])


class SamplerOptions(TypedDict, total=False):
    """The fields of `PerturbationSamplerConfig` as keyword arguments."""

    sentence_size: int | None
    sentences_per_batch: int
    seed: int
    drop_last: bool
    downsample_cells: int | None
    shuffle_size: int
    balance: Balance | None
