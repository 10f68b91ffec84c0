"""Contexts of a screen: the datasets and cell types in which perturbations are judged on their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lazypert.quality.config import ContextAxis
    from lazypert.screen.groups import Groups


@dataclass(frozen=True, slots=True, eq=False)
class Contexts:
    """The contexts, sorted by their labels; without axes, one context holds all cells.

    Attributes
    ----------
    of_run
        (n_runs,) int64 number of each run's context.
    labels
        Label of each context on each axis; None for a missing one.
    """

    of_run: NDArray[np.int64]
    labels: list[dict[str, str | None]]

    @classmethod
    def of(cls, groups: Groups, axes: tuple[ContextAxis, ...]) -> Contexts:
        """Divide the runs of a screen into contexts."""
        if not axes:
            return cls(np.zeros(len(groups.start), dtype=np.int64), [{}])
        codes = np.stack([groups.codes[axis] for axis in axes], axis=1)
        found, of_run = np.unique(codes, axis=0, return_inverse=True)
        labels: list[dict[str, str | None]] = [
            {axis: str(groups.labels[axis][c]) if c >= 0 else None for axis, c in zip(axes, row, strict=True)}
            for row in found.tolist()
        ]
        return cls(of_run.reshape(-1), labels)

    def perturbations(self, groups: Groups) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
        """Yield the (context, perturbation code, runs) of every perturbation in every context, without the controls."""
        runs = np.flatnonzero((groups.ids >= 0) & ~groups.is_control)
        n_perturbations = len(groups.labels["perturbation"])
        key = self.of_run[runs] * n_perturbations + groups.codes["perturbation"][runs]
        runs, key = runs[np.argsort(key, kind="stable")], np.sort(key)
        first = np.flatnonzero(np.diff(key, prepend=-1))
        for number, chosen in zip(key[first].tolist(), np.split(runs, first[1:]), strict=False):
            yield *divmod(number, n_perturbations), chosen
