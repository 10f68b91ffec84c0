"""What a split needs to know of a screen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups


class CellSource(Protocol):
    """A screen, or a selection of its cells: a `PerturbationSource`, or ``ds.pert`` of a Dataset.

    Reading the same rows always gives the same values.
    """

    @property
    def groups(self) -> Groups:
        """Groups of its cells."""
        ...

    def obs_names(self, rows: NDArray[np.integer]) -> NDArray[Any]:
        """Read (n,) cell names."""
        ...

    def read_obs(self, column: str, rows: NDArray[np.integer]) -> NDArray[Any]:
        """Read (n,) values of an obs column."""
        ...
