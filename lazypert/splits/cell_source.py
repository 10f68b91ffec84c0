"""What a split needs to know of a screen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

from lazypert.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr
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


def as_cell_source(source: CellSource | xr.Dataset) -> CellSource:
    """Return what knows the cells: the source itself, or the ``ds.pert`` of a Dataset.

    Raises
    ------
    ConfigError
        If it is something else, such as a path.
    """
    if not hasattr(source, "groups"):
        source = getattr(source, "pert", source)
    if not hasattr(source, "groups"):
        raise ConfigError(
            f"source: got {source!r}, expected a PerturbationSource or a Dataset from lazypert.open. Open "
            "the store first: lazypert.open(path)."
        )
    return cast("CellSource", source)
