"""Reading a finished store: its tables at once, its matrices by rows."""

from __future__ import annotations

import glob
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import zarr

from lazypert import native
from lazypert.csr import ColumnTable, CSRBlock, Place, PlacedRows, copy_rows, one_after_another
from lazypert.errors import ColumnNotFoundError, StoreDamagedError, StoreNotFoundError, near_matches
from lazypert.groups import AXES, Groups
from lazypert.readers import ByteReader, LocalReader, RemoteReader
from lazypert.schema import FORMAT_VERSION, MARKER, TABLES, Grid, Roles, dense_dtype
from lazypert.shards import ShardedArray, spread

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


class Located(NamedTuple):
    """Where some rows of a matrix are.

    Attributes
    ----------
    order
        (n,) which of the rows asked for comes first in the matrix, and so on.
    first, last
        (n,) first element and one past the last of each, in that order.
    lengths
        (n,) elements of each, in the order asked.
    """

    order: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    lengths: NDArray[np.int64]


class Matrix:
    """A sparse matrix of a store, read by rows. Thread-safe and picklable.

    Attributes
    ----------
    name
        ``"X"`` or ``"layers/<name>"``.
    shape
        Cells, genes.
    dtype
        Dtype of the stored values.
    facts
        ``nnz``, ``sum``, ``integral``, ``minimum``, ``maximum``, ``n_nonfinite``, found at conversion.
    """

    def __init__(
        self, name: str, shape: tuple[int, int], parts: dict[str, ShardedArray], facts: dict[str, Any]
    ) -> None:
        self.name, self.shape, self.facts = name, shape, facts
        self.indptr, self.indices, self.data = parts["indptr"], parts["indices"], parts["data"]
        self.dtype = self.data.dtype

    @property
    def dense_dtype(self) -> np.dtype[Any]:
        """Float dtype that shows every value exactly."""
        return dense_dtype(self.dtype, self.facts["maximum"], self.facts["minimum"])

    @property
    def is_counts(self) -> bool:
        """Whether every value is a non-negative integer."""
        return bool(self.facts["integral"] and self.facts["minimum"] >= 0)

    def read(self, start: int, stop: int) -> CSRBlock:
        """Rows ``start`` to ``stop``: one contiguous read of each array."""
        return self.read_rows(np.arange(start, stop))

    def read_rows(self, rows: NDArray[np.integer]) -> CSRBlock:
        """Rows in any order, repeats allowed; a chunk that rows share is read and decoded once."""
        placed = self.read_placed(rows)
        indptr = np.concatenate([[0], np.cumsum(placed.lengths)]).astype(np.int64)
        return CSRBlock(indptr, placed.indices, placed.data, self.shape[1])

    def read_placed(
        self,
        rows: NDArray[np.integer],
        *,
        place: Place = one_after_another,
        empty: Callable[[int, Any], NDArray[Any]] = np.empty,
        narrow: bool = False,
    ) -> PlacedRows:
        """Rows in any order, repeats allowed, each decoded to a place of its own.

        Parameters
        ----------
        place
            Says where each row goes, from the lengths of all.
        empty
            Makes arrays to decode into.
        narrow
            Give column numbers as uint16 where that holds them all: half the memory.
        """
        located = self.locate(rows)
        starts, size = place(located.lengths)
        small = narrow and self.shape[1] <= 2**16
        indices = empty(size, np.dtype(np.uint16) if small else self.indices.dtype)
        data = empty(size, self.dtype)
        self.gather(located, starts, indices, data)
        return PlacedRows(starts, located.lengths, indices, data, self.shape[1])

    def locate(self, rows: NDArray[np.integer]) -> Located:
        """Look up where rows in any order are, repeats allowed."""
        rows = np.asarray(rows, dtype=np.int64)
        order = np.argsort(rows, kind="stable")
        first, last = self._bounds(rows[order])
        lengths = np.empty(len(rows), np.int64)
        lengths[order] = last - first
        return Located(order, first, last, lengths)

    def gather(self, located: Located, starts: NDArray[np.int64], indices: NDArray[Any], data: NDArray[Any]) -> None:
        """Decode rows, each to ``starts[i]`` and on of arrays that may hold others too.

        Of unsigned integers, arrays may be narrower or wider than what is stored.
        """
        order, first, last, _ = located
        places, n = starts[order], len(order)
        # Neighbours that stay neighbours are one range.
        breaks = np.flatnonzero((first[1:] != last[:-1]) | (places[1:] - places[:-1] != (last - first)[:-1])) + 1
        heads, tails = np.append(0, breaks)[:n], np.append(breaks, n)[:n] - 1
        ranges = first[heads], last[tails], places[heads]
        self.indices.gather(*ranges, indices)
        self.data.gather(*ranges, data)

    def read_selected(self, rows: NDArray[np.integer], columns: ColumnTable, *, totals: bool = False) -> PlacedRows:
        """Wanted columns of rows in any order, repeats allowed; with `totals`, their sums over all columns too.

        Of the others nothing is kept, so it is faster and takes less memory than `read_placed`.
        """
        wanted, back = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
        if native.FUNCTIONS is None or self.indices.grid.chunk != self.data.grid.chunk:
            return self.read_placed(rows, narrow=True).select(columns, totals=totals)
        first, last = self._bounds(wanted)
        filled = last > first
        ranges = first[filled], last[filled]
        kept = self.indices.select(*ranges, columns)
        starts, lengths = np.zeros((2, len(wanted)), np.int64)
        data, sums = self.data.pick(*ranges, kept, totals=totals)
        starts[filled] = np.concatenate([[0], kept.upto_range])[:-1]
        lengths[filled] = kept.upto_range - starts[filled]
        found = PlacedRows(starts[back], lengths[back], kept.columns, data, columns.n_columns)
        if not totals:
            return found
        of_rows = np.zeros(len(wanted))
        of_rows[filled] = sums
        return replace(found, totals=of_rows[back])

    def read_dense(
        self,
        rows: NDArray[np.integer],
        columns: ColumnTable,
        *,
        target_sum: float | None = None,
        empty: Callable[[tuple[int, int], Any], NDArray[Any]] = np.empty,
    ) -> NDArray[np.float32]:
        """(n, n_columns) float32 wanted columns of rows in any order, repeats allowed.

        Values go from where they are decoded to where they are wanted: the fastest way to few columns.

        Parameters
        ----------
        columns
            Which to take.
        target_sum
            Scale each row to this sum over all columns, then take ``log1p``.
        empty
            Makes the array.
        """
        out = empty((len(rows), columns.n_columns), np.float32)
        self.fill_dense(rows, columns, target_sum, out, np.arange(len(rows)))
        return out

    def fill_dense(
        self,
        rows: NDArray[np.integer],
        columns: ColumnTable,
        target_sum: float | None,
        out: NDArray[np.float32],
        places: NDArray[np.int64],
    ) -> None:
        """Write what `read_dense` gives into the rows `places` of `out`."""
        rows = np.asarray(rows, dtype=np.int64)
        order = np.argsort(rows, kind="stable")
        is_new = np.diff(rows[order], prepend=-1) != 0
        heads = order[is_new]
        first, last = self._bounds(rows[heads])
        filled = last > first
        ranges = first[filled], last[filled], places[heads[filled]]
        if native.FUNCTIONS is None or self.indices.grid.chunk != self.data.grid.chunk:
            placed = self.read_placed(rows[heads[filled]], narrow=True).select(columns, totals=True)
            placed.fill(out, places[heads[filled]], target_sum)
        else:
            spread(self.indices, self.data, *ranges, columns, target_sum or 0.0, out)
        out[places[heads[~filled]]] = 0
        copy_rows(out, places[heads[np.cumsum(is_new) - 1][~is_new]], places[order[~is_new]])

    def _bounds(self, rows: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First element of each of some rows, and one past its last; the rows ascend."""
        if len(rows) and not 0 <= rows[0] <= rows[-1] < self.shape[0]:
            raise IndexError(f"{self.name} has {self.shape[0]:,} rows, got {rows[0]:,} to {rows[-1]:,}.")
        is_new = np.diff(rows, prepend=-1) != 0
        wanted, back = rows[is_new], np.cumsum(is_new) - 1
        breaks = np.flatnonzero(np.diff(wanted) != 1) + 1
        heads, tails = np.append(0, breaks)[: len(wanted)], np.append(breaks, len(wanted))[: len(wanted)]
        # A run of n rows has n + 1 bounds.
        places = heads + np.arange(len(heads))
        bounds = np.empty(len(wanted) + len(heads), dtype=self.indptr.dtype)
        self.indptr.gather(wanted[heads], wanted[tails - 1] + 2, places, bounds)
        at = (np.arange(len(wanted)) + np.repeat(np.arange(len(heads)), tails - heads))[back]
        first, last = bounds[at].astype(np.int64), bounds[at + 1].astype(np.int64)
        # What is decoded goes where these say.
        descends = (last < first).any() or (np.where(is_new[1:], last[:-1], first[:-1]) > first[1:]).any()
        if descends:
            raise _damaged(self.indptr.path, "it descends")
        if len(rows) and not 0 <= first[0] <= last[-1] <= len(self.data):
            raise _damaged(self.indptr.path, f"it points beyond the {len(self.data):,} stored values")
        return first, last


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
            raise ColumnNotFoundError(f"layer={layer!r} is not in {self.path!r}. {near_matches(str(layer), known)}")
        return self.sparse(name)

    def sparse(self, name: str) -> Matrix:
        """One of `matrices`, by its name."""
        parts = {part: self.sharded(f"{name}/{part}") for part in ("indptr", "indices", "data")}
        facts = self.attrs["matrices"][name]
        return Matrix(name, (self.n_obs, facts["n_cols"]), parts, facts)

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
    def has_facts(self) -> bool:
        """Whether conversion noted what `facts` holds."""
        return TABLES in self._root and "facts" in self._root[TABLES]  # type: ignore[operator]

    @cached_property
    def facts(self) -> StoredFacts | None:
        """What conversion noted of the cells, or None in a store without such notes."""
        base = f"{TABLES}/facts"
        if not self.has_facts:
            return None
        group: Any = self._root[base]
        groups = self.groups
        control = np.flatnonzero(groups.is_control)
        return StoredFacts(
            gene_col=group.attrs["gene_col"],
            total=self.sharded(f"{base}/total"),
            n_genes=self.sharded(f"{base}/n_genes"),
            own_target=self.sharded(f"{base}/own_target"),
            target=self.table(f"{base}/target"),
            control_sum=self.table(f"{base}/control_sum").reshape(len(control), len(groups.labels["perturbation"])),
            control_row=groups.rows(control).firsts(),
        )

    def require_obs(self, column: str, role: str = "obs column") -> str:
        """Return the column's name.

        Raises
        ------
        ColumnNotFoundError
            When it does not exist; near matches are listed.
        """
        if column not in self.obs_columns:
            raise ColumnNotFoundError(
                f"{role} {column!r} is not in {self.path!r}. {near_matches(column, self.obs_columns)}"
            )
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
            order=self.table(f"{TABLES}/order") if has_order else None,
            n_obs=self.n_obs,
            is_shuffled=self.attrs["order"] == "grouped",
        )


@dataclass(frozen=True, slots=True, eq=False)
class StoredFacts:
    """What conversion noted of the cells of X (see `lazypert.facts`).

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


class TextArray:
    """An array of strings that refuses to invent them: a missing shard is an error, not empty text."""

    dtype = np.dtype(object)

    def __init__(self, reader: ByteReader, array: Any, path: str) -> None:
        self._reader, self._array, self._path = reader, array, path

    def __len__(self) -> int:
        return int(self._array.shape[0])

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Strings ``start`` to ``stop``, as an object array."""
        shard = self._array.shards[0]
        keys = [f"{self._path}/c/{number}" for number in range(start // shard, -(-stop // shard))]
        return np.asarray(_careful(self._reader, keys, lambda: self._array[start:stop]), dtype=object)


class DenseArray:
    """A dense (cell, feature) array in row chunks, with the same refusal: no chunk is made up."""

    ndim = 2

    def __init__(self, reader: ByteReader, array: Any, path: str) -> None:
        self._reader, self._array, self._path = reader, array, path

    @property
    def shape(self) -> tuple[int, int]:
        """Cells and features."""
        n, width = self._array.shape
        return int(n), int(width)

    @property
    def dtype(self) -> np.dtype[Any]:
        """As stored."""
        return np.dtype(self._array.dtype)

    @property
    def chunks(self) -> tuple[int, int]:
        """Rows and columns that are stored together."""
        rows, width = self._array.chunks
        return int(rows), int(width)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        rows = key[0] if isinstance(key, tuple) else key
        rows = np.arange(*rows.indices(self.shape[0])) if isinstance(rows, slice) else np.atleast_1d(rows)
        keys = [f"{self._path}/c/{number}/0" for number in np.unique(rows // self.chunks[0])]
        return np.asarray(_careful(self._reader, keys, lambda: self._array.oindex[key]))

    @property
    def oindex(self) -> DenseArray:
        """Itself: its axes are indexed one by one."""
        return self


def _careful(reader: ByteReader, keys: list[str], read: Callable[[], Any]) -> Any:
    """Read with Zarr, which shows zeros or empty text where a file is missing, once all files are there."""
    for key in keys:
        if reader.size(key) is None:
            raise _damaged(key, "the file is missing")
    try:
        return read()
    except (ValueError, RuntimeError, TypeError, IndexError, OverflowError, OSError) as error:
        raise _damaged(keys[0] if len(keys) == 1 else f"{keys[0]} to {keys[-1]}", str(error)) from error


def _damaged(key: str, what: str) -> StoreDamagedError:
    return StoreDamagedError(
        f"The store is damaged at {key}: {what}. "
        "Run lazypert.verify(store) to list all damage, and convert the source again."
    )


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
