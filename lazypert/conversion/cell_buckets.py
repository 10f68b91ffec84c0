"""Buckets: consecutive ranges of the sorted cells, each of which a task sorts in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.kernels import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Buckets:
    """Which bucket a cell is in, by its run and the hash of its name.

    A bucket has several small runs, or a part of a large one: its cells with hashes in some range.

    Attributes
    ----------
    first
        (n_runs,) first bucket of each run.
    n_parts
        (n_runs,) number of buckets of each run.
    n_buckets
        Number of buckets.
    """

    first: NDArray[np.int64]
    n_parts: NDArray[np.int64]
    n_buckets: int

    @classmethod
    def of(cls, sizes: NDArray[np.int64], capacity: int) -> Buckets:
        """Divide runs of the given sizes into buckets of about `capacity` cells or fewer."""
        first, n_parts = np.zeros(len(sizes), np.int64), np.ones(len(sizes), np.int64)
        bucket, n_filled = 0, 0
        for run, size in enumerate(sizes.tolist()):
            if n_filled and n_filled + size > capacity:
                bucket, n_filled = bucket + 1, 0
            first[run], n_parts[run] = bucket, -(-size // capacity) if size > capacity else 1
            if n_parts[run] > 1:
                bucket, n_filled = bucket + int(n_parts[run]), 0
            else:
                n_filled += size
        return cls(first, n_parts, bucket + (n_filled > 0) or 1)

    def part_of_run(self, bucket: int) -> tuple[int, int] | None:
        """Return the first bucket of the run that this one is a part of, and one past its last; None for whole runs."""
        run = int(np.searchsorted(self.first, bucket, side="right")) - 1
        if run < 0 or self.n_parts[run] == 1:
            return None
        return int(self.first[run]), int(self.first[run] + self.n_parts[run])

    def bucket_of(self, run: NDArray[np.integer], hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """(n,) bucket of each cell."""
        out = np.empty(len(run), np.int64)
        _bucket_of(self.first, self.n_parts, run, hashes, out)
        return out


@kernel
def _bucket_of(first: Any, n_parts: Any, run: Any, hashes: Any, out: Any) -> None:
    for i in range(len(run)):
        part = ((hashes[i] >> np.uint64(32)) * np.uint64(n_parts[run[i]])) >> np.uint64(32)
        out[i] = first[run[i]] + np.int64(part)
