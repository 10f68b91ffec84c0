"""Options of sentence plans and samplers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

from lazypert._internal.config import Config
from lazypert._internal.validation import require_choice, require_flag, require_integer

Balance = Literal["group", "perturbation", "cell_type"]


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


class SamplerOptions(TypedDict, total=False):
    """The fields of `PerturbationSamplerConfig` as keyword arguments."""

    sentence_size: int
    sentences_per_batch: int
    seed: int
    drop_last: bool
    downsample_cells: int | None
    shuffle_size: int
    balance: Balance | None
