"""The attributes that all readers share, and their errors for names that do not exist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lazypert.errors import no_such_column

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray

    from lazypert.errors import ColumnNotFoundError


@dataclass(frozen=True)
class Reader:
    """An opened source file, as `lazypert.converter.ScreenReader` describes it.

    Holds no open handle, so it can be pickled and used from many threads. The default
    `raw_var`, `read_obsm` and `column_names` are for formats that have none.
    """

    path: Path
    n_obs: int
    n_vars: int
    obs_columns: tuple[str, ...]
    matrices: dict[str, int]
    obsm: dict[str, int]
    not_carried: tuple[str, ...]

    def raw_var(self) -> pd.DataFrame:
        """Raise `ColumnNotFoundError`: the file has no raw matrix."""
        raise no_such_column("matrix", "raw/X", "a matrix", self.matrices, of=self.path)

    def read_obsm(self, name: str, start: int, stop: int) -> NDArray[Any]:  # noqa: ARG002
        """Raise `ColumnNotFoundError`: the file has no embedding of that name."""
        raise no_such_column("embedding", name, "an embedding", self.obsm, of=self.path)

    def column_names(self, matrix: str) -> NDArray[Any] | None:  # noqa: ARG002
        """(n_columns,) names of the columns of an obsm entry; None if they have none."""
        return None

    def no_obs_column(self, name: str) -> ColumnNotFoundError:
        """Make the error for an obs column that does not exist or could not be copied."""
        reason = next((f"{line}." for line in self.not_carried if line.startswith(f"obs/{name}: ")), "")
        return no_such_column("obs column", name, "an obs column", self.obs_columns, of=self.path, hint=reason)
