"""Reading a finished store: its tables at once, its matrices by rows."""

from __future__ import annotations

import glob
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import zarr

from lazypert.errors import StoreDamagedError, StoreNotFoundError, no_such_column
from lazypert.screen.groups import Groups
from lazypert.screen.roles import AXES, OPTIONAL_ROLES, Roles
from lazypert.store.byte_reader import ByteReader, LocalReader, RemoteReader
from lazypert.store.format import FORMAT_VERSION, MARKER, TABLES, Grid
from lazypert.store.sharded_array import ShardedArray

if TYPE_CHECKING:
    from numpy.typing import NDArray
from lazypert.store.arrays import DenseArray, TextArray
from lazypert.store.matrix import Matrix


class Store:
    """A finished lazypert store, opened for reading. Picklable: workers open it again by its path.

    Opening reads the root metadata only, so it takes the same time and memory for any size.

    Parameters
    ----------
    path
        A folder, or a URL such as ``"s3://bucket/screen.zarr"``.
    storage_options
        Passed to fsspec for URLs.

    Raises
    ------
    StoreNotFoundError
        When there is no finished lazypert store.
    StoreDamagedError
        When its root metadata cannot be read.
    """

    def __init__(self, path: str | Path, storage_options: dict[str, Any] | None = None) -> None:
        self.path, self.storage_options = str(path), storage_options
        self.reader, self._root = _open(self.path, storage_options)
        self.attrs: dict[str, Any] = dict(self._root.attrs[MARKER])  # type: ignore[arg-type]
        if not isinstance(self.attrs.get("format_version"), int):
            raise StoreDamagedError(
                f"The store is damaged at {self.path}/zarr.json: it names no format version. Convert the source again."
            )
        if self.attrs["format_version"] > FORMAT_VERSION:
            raise StoreNotFoundError(
                f"{self.path!r} has format version {self.attrs['format_version']}, and this lazypert reads up to "
                f"version {FORMAT_VERSION}. Upgrade lazypert."
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.location, self.storage_options)

    @property
    def location(self) -> str:
        """Where the store is, whatever the working folder becomes: an absolute path, or a URL."""
        return self.path if "://" in self.path else str(Path(self.path).absolute())

    def __repr__(self) -> str:
        return f"Store({self.path!r}, {self.n_obs:,} cells x {self.n_vars:,} genes)"

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return int(self.attrs["n_obs"])

    @property
    def n_vars(self) -> int:
        """Number of genes."""
        return int(self.attrs["n_vars"])

    @property
    def roles(self) -> Roles:
        """Columns the store was grouped by."""
        return Roles.from_json(self.attrs["roles"])

    @property
    def matrices(self) -> tuple[str, ...]:
        """Names of the sparse matrices, X first: ``"X"``, ``"layers/<name>"``, ``"obsm/<name>"``."""
        return tuple(self.attrs["matrices"])

    @property
    def obs_columns(self) -> tuple[str, ...]:
        """Names of the obs columns."""
        return tuple(self._root["obs"].attrs["column-order"])  # type: ignore[arg-type]

    @property
    def obsm(self) -> dict[str, DenseArray]:
        """Dense embeddings; sparse ones are among `matrices`."""
        arrays: Any = self._root["obsm"].arrays()  # type: ignore[union-attr]
        return {name: DenseArray(self.reader, array, f"obsm/{name}") for name, array in arrays}

    def matrix(self, layer: str | None = None) -> Matrix:
        """X, or a layer.

        Raises
        ------
        ColumnNotFoundError
            When there is no such layer.
        """
        name = "X" if layer is None else f"layers/{layer}"
        if name not in self.matrices:
            known = [other.removeprefix("layers/") for other in self.matrices if other.startswith("layers/")]
            raise no_such_column("layer", str(layer), "a layer", known, of=self.path)
        return self.sparse(name)

    def sparse(self, name: str) -> Matrix:
        """One of `matrices`, by its name."""
        parts = {part: self.sharded(f"{name}/{part}") for part in ("indptr", "indices", "data")}
        stats = self.attrs["matrices"][name]
        return Matrix(name, (self.n_obs, stats["n_cols"]), parts, stats)

    def sharded(self, path: str) -> ShardedArray:
        """Open a numeric one-dimensional array by its path."""
        array: Any = self._root[path]
        grid = Grid(array.shape[0], array.chunks[0], array.shards[0])
        return ShardedArray(self.reader, path, array.dtype, grid)

    def table(self, path: str) -> NDArray[Any]:
        """Read a numeric one-dimensional array whole."""
        array = self.sharded(path)
        return array.read(0, len(array))

    def strings(self, path: str) -> NDArray[Any]:
        """Read an array of strings whole."""
        array = self.text(path)
        return array.read(0, len(array))

    def text(self, path: str) -> TextArray:
        """Open an array of strings."""
        return TextArray(self.reader, self._root[path], path)

    def encoding(self, path: str) -> str:
        """AnnData encoding type of an element."""
        return str(self._root[path].attrs["encoding-type"])

    def is_ordered(self, path: str) -> bool:
        """Whether a categorical column is ordered."""
        return bool(self._root[path].attrs["ordered"])

    def categories(self, path: str) -> NDArray[Any]:
        """Labels of a categorical column: strings, or numbers."""
        below = f"{path}/categories"
        return self.strings(below) if self.encoding(below) == "string-array" else self.table(below)

    def column(self, path: str) -> Any:
        """Read a column whole, as pandas has it: an array, a Categorical or a nullable array."""
        kind = self.encoding(path)
        if kind == "categorical":
            codes = self.table(f"{path}/codes")
            return pd.Categorical.from_codes(codes, self.categories(path), ordered=self.is_ordered(path))
        if kind == "string-array":
            return self.strings(path)
        if kind == "nullable-string-array":
            text = self.strings(f"{path}/values")
            text[self.table(f"{path}/mask")] = None
            return text
        if kind.startswith("nullable-"):
            values, mask = self.table(f"{path}/values"), self.table(f"{path}/mask")
            array = pd.arrays.BooleanArray if kind == "nullable-boolean" else pd.arrays.IntegerArray
            return array(values, mask)
        return self.table(path)

    @cached_property
    def var(self) -> pd.DataFrame:
        """The var table, indexed by gene name."""
        columns: list[str] = list(self._root["var"].attrs["column-order"])  # type: ignore[arg-type]
        return pd.DataFrame(
            {name: self.column(f"var/{name}") for name in columns}, index=pd.Index(self.strings("var/_index"))
        )

    @property
    def has_cell_stats(self) -> bool:
        """Whether conversion noted what `cell_stats` holds."""
        return TABLES in self._root and "facts" in self._root[TABLES]  # type: ignore[operator]

    @cached_property
    def cell_stats(self) -> StoredCellStats | None:
        """What conversion noted of the cells, or None in a store without such notes."""
        base = f"{TABLES}/facts"
        if not self.has_cell_stats:
            return None
        group: Any = self._root[base]
        groups = self.groups
        control = np.flatnonzero(groups.is_control)
        return StoredCellStats(
            gene_col=group.attrs["gene_col"],
            total=self.sharded(f"{base}/total"),
            n_genes=self.sharded(f"{base}/n_genes"),
            own_target=self.sharded(f"{base}/own_target"),
            target=self.table(f"{base}/target"),
            control_sum=self.table(f"{base}/control_sum").reshape(len(control), len(groups.labels["perturbation"])),
            control_row=groups.rows(control).firsts(),
        )

    def require_obs(self, column: str, role: str = "obs") -> str:
        """Return the column's name.

        Raises
        ------
        ColumnNotFoundError
            When it does not exist; near matches are listed.
        """
        if column not in self.obs_columns:
            hint = f"If the screen has no such column, pass {role}=None." if role in OPTIONAL_ROLES else ""
            raise no_such_column(role, column, "an obs column", self.obs_columns, of=self.path, hint=hint)
        return column

    @cached_property
    def groups(self) -> Groups:
        """Groups of the store's own roles, as conversion left them."""
        base = f"{TABLES}/runs"
        has_order = "order" in self._root[TABLES]  # type: ignore[operator]
        return Groups(
            roles=self.roles,
            labels={axis: self.strings(f"{TABLES}/labels/{axis}").astype(np.str_) for axis in AXES},
            start=self.table(f"{base}/start"),
            stop=self.table(f"{base}/stop"),
            codes={axis: self.table(f"{base}/{axis}") for axis in AXES},
            row_order=self.table(f"{TABLES}/order") if has_order else None,
            n_obs=self.n_obs,
            is_shuffled=self.attrs["order"] == "grouped",
        )


@dataclass(frozen=True, slots=True, eq=False)
class StoredCellStats:
    """What conversion noted of the cells of X (see `lazypert.conversion.cell_stats`).

    Attributes
    ----------
    gene_col
        var column in which the perturbations were found as genes; None is the index.
    total, n_genes
        (n_obs,) sum of each cell's values, and number of its genes with any.
    own_target
        (n_obs,) expression of the own target; NaN for controls and where there is none.
    target
        (n_perturbations,) column of the gene each perturbation is named for, -1 for none.
    control_sum
        (n_control_runs, n_perturbations) sums of every target over the cells of a run of controls.
    control_row
        (n_control_runs,) a row of each of these runs.
    """

    gene_col: str | None
    total: ShardedArray
    n_genes: ShardedArray
    own_target: ShardedArray
    target: NDArray[np.int32]
    control_sum: NDArray[np.float64]
    control_row: NDArray[np.int64]


def _open(path: str, storage_options: dict[str, Any] | None) -> tuple[ByteReader, zarr.Group]:
    if "://" in path:
        from zarr.storage import FsspecStore

        remote = FsspecStore.from_url(path, storage_options=storage_options, read_only=True)
        return RemoteReader(remote), _open_group(remote, path)
    folder = Path(path).absolute()
    if not folder.exists():
        begun = next(folder.parent.glob(f"{glob.escape(folder.name)}.partial-*"), None)
        what_to_do = (
            "Check the path, or make one: lazypert.convert(...)."
            if begun is None
            else f"A conversion to it was cut off, and {begun.name!r} holds what it had done: run it again to go on."
        )
        raise StoreNotFoundError(f"There is no store at {path!r}. {what_to_do}")
    if not folder.is_dir():
        raise StoreNotFoundError(
            f"{path!r} is a file, and a lazypert store is a folder. Convert it first: "
            f"lazypert.convert({path!r}, 'screen.zarr', pert_col=..., control_pert=...)."
        )
    return LocalReader(folder), _open_group(folder, path)


def _open_group(where: Any, path: str) -> zarr.Group:
    try:
        group = zarr.open_group(where, mode="r", zarr_format=3)
    except FileNotFoundError as error:
        raise StoreNotFoundError(
            f"{path!r} holds no Zarr store: it has no zarr.json. Check the path, or make one: lazypert.convert(...)."
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise StoreDamagedError(
            f"The store is damaged at {path}/zarr.json: {error}. Convert the source again."
        ) from error
    if MARKER not in group.attrs:
        raise StoreNotFoundError(
            f"{path!r} is a Zarr store but not a lazypert one: its root attributes have no {MARKER!r} entry. "
            "Convert the original file with lazypert.convert(...)."
        )
    return group
