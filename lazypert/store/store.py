"""Opening a finished store and reading its tables; `Store.matrix` gives the matrices, which are read by rows."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from zarr.abc.store import Store as ZarrStore
from zarr.storage import LocalStore

import lazypert_zarr  # noqa: F401 - opens counts without zarr's warning even if lazypert is not installed
from lazypert._internal.cluster import this_worker
from lazypert._internal.files import crc32
from lazypert._internal.memory import parse_bytes
from lazypert._internal.paths import is_url, local_path, location
from lazypert.errors import StoreDamagedError, StoreNotFoundError, no_such_column
from lazypert.screen.roles import OPTIONAL_ROLES, Roles
from lazypert.store.added import ADDED, combined_digest, is_within
from lazypert.store.arrays import DenseArray, StringArray
from lazypert.store.byte_reader import LocalReader
from lazypert.store.damage import store_damaged
from lazypert.store.format import FORMAT_VERSION, MARKER, RAW, TABLES, Grid, matrix_name, stored_elements
from lazypert.store.manifest import MANIFEST, Entry, manifest_digest
from lazypert.store.matrix import Matrix
from lazypert.store.opening import open_root
from lazypert.store.replaced import CheckedReader, Version, store_changed, store_gone
from lazypert.store.sharded_array import ShardedArray
from lazypert.store.stored_cell_stats import StoredCellStats
from lazypert.store.stored_groups import read_groups
from lazypert.store.table_objects import group_objects

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.store.byte_reader import ByteReader
    from lazypert.store.format import Compression

DEFAULT_CACHE_SIZE = "20GiB"

_CELL_STATS = f"{TABLES}/facts"


class Store:
    """A finished lazypert store, opened for reading. Picklable: workers reopen it by its path.

    Opening reads only the root metadata, so it takes the same time and memory for a store of any size.

    Parameters
    ----------
    path
        A folder, in which ``~`` and ``$VARIABLES`` are replaced; a URL such as ``"s3://bucket/screen.zarr"``; or a
        Zarr store, such as `zarr.storage.ObjectStore` or the store of an Icechunk session.
    storage_options
        Options for URLs: those of fsspec or obstore, and `RequestOptions`.
    cache_dir
        Folder on the local disk that keeps what is read from a URL or a Zarr store; processes share it. None keeps
        nothing but tables in memory.
    cache_size
        Bytes that all stores may take in that folder, such as ``"50GiB"``.

    Raises
    ------
    StoreNotFoundError
        If there is no finished lazypert store, or only one of a newer format version.
    StoreDamagedError
        If its root metadata cannot be read.
    ConfigError
        If a variable is not set, or a `pathlib.Path` was made of a URL, which must be text; or an option is unknown.
    StorageError
        If object storage does not answer, or refuses access.
    """

    def __init__(
        self,
        path: str | Path | ZarrStore,
        storage_options: dict[str, Any] | None = None,
        *,
        cache_dir: str | Path | None = None,
        cache_size: int | str = DEFAULT_CACHE_SIZE,
    ) -> None:
        if isinstance(path, LocalStore):
            path = path.root
        self._zarr_store = path if isinstance(path, ZarrStore) else None
        self.path = _name_of(path) if isinstance(path, ZarrStore) else location("store", path)
        self.storage_options, self.cache_dir, self.cache_size = storage_options, cache_dir, cache_size
        limit = parse_bytes(cache_size, "cache_size")
        cache = None if cache_dir is None else (local_path("cache_dir", cache_dir, "The cache is local."), limit)
        self._root: Any  # a Zarr group, whose type does not say what a path holds
        self.reader: ByteReader
        reader, self._root, self._root_identity = open_root(self.path, storage_options, self._zarr_store, cache)
        self.attrs: dict[str, Any] = dict(self._root.attrs[MARKER])
        version = self.attrs.get("format_version")
        if not isinstance(version, int):
            raise store_damaged(f"{self.path}/zarr.json", f"format_version: got {version!r}, expected an integer")
        if version > FORMAT_VERSION:
            raise StoreNotFoundError(
                f"format_version: got {version} in {self.path!r}, expected at most {FORMAT_VERSION}. "
                "Upgrade lazypert to read this store."
            )
        self.format_version: int = version
        self.reader = CheckedReader(reader, self.attrs, self._root_identity)
        if self.is_remote:
            self.reader.check()  # what was read after the root metadata belongs to them

    def __reduce__(self) -> tuple[Any, ...]:
        cache = self.cache_dir, self.cache_size
        return _reopen, (self.given, self.storage_options, cache, Version.of(self.attrs))

    def __repr__(self) -> str:
        return f"Store({self.path!r}, {self.n_obs:,} cells x {self.n_vars:,} genes)"

    # What the root metadata says.

    @property
    def location(self) -> str:
        """Absolute path or URL of the store, which is valid in any working directory."""
        return self.path if is_url(self.path) else str(Path(self.path).absolute())

    @property
    def given(self) -> Any:
        """What opens the store again: its `location`, or the Zarr store that it was opened from."""
        return self.location if self._zarr_store is None else self._zarr_store

    @property
    def is_remote(self) -> bool:
        """Whether the store is at a URL, or was opened from a Zarr store."""
        return is_url(self.path)

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
        """Roles that the store's cells were grouped by during conversion."""
        return Roles.from_json(self.attrs["roles"])

    @property
    def matrices(self) -> tuple[str, ...]:
        """Names of the sparse matrices, X first: ``"X"``, ``"layers/<name>"``, ``"raw/X"``, ``"obsm/<name>"``."""
        return tuple(self.attrs["matrices"])

    @property
    def compression(self) -> Compression:
        """How the column numbers of X are stored; `convert` describes the options."""
        return "compact" if self.open_array("X/indices").is_delta else "fast"

    @property
    def obs_columns(self) -> tuple[str, ...]:
        """Names of the obs columns."""
        return tuple(self._root["obs"].attrs["column-order"])

    def require_obs(self, column: str, role: str = "obs") -> str:
        """Return the name of an obs column after checking that it exists.

        Raises
        ------
        ColumnNotFoundError
            If it does not exist; the message lists near matches.
        """
        if column not in self.obs_columns:
            hint = f"If the screen has no such column, pass {role}=None." if role in OPTIONAL_ROLES else ""
            raise no_such_column(role, column, "an obs column", self.obs_columns, of=self.path, hint=hint)
        return column

    def encoding(self, path: str) -> str:
        """AnnData encoding type of an element, such as ``"categorical"``."""
        return str(self._root[path].attrs["encoding-type"])

    def is_ordered(self, path: str) -> bool:
        """Whether a categorical column is ordered."""
        return bool(self._root[path].attrs["ordered"])

    def text_dtype(self, path: str) -> pd.StringDtype:
        """Return the pandas dtype of a nullable text column, whose missing values are NA or NaN."""
        is_nan = self._root[path].attrs.get("na-value") == "NaN"
        return pd.StringDtype(na_value=float("nan")) if is_nan else pd.StringDtype()

    # What AnnData holds besides cells and genes.

    def read_elements(self, group: str) -> dict[str, Any]:
        """Entries of AnnData's ``uns``, ``varm`` or ``varp``, as AnnData reads them; their files are checked first.

        Raises
        ------
        StoreDamagedError
            If a file is missing or has changed.
        """
        stored = self._root[group]
        if not any(True for _ in stored.members()):
            return {}
        import anndata

        for entry in self.read_manifest():
            if entry.key.startswith(f"{group}/"):
                size = self.reader.size(entry.key)
                if size != entry.size or crc32(self.reader.read(entry.key, 0, entry.size)) != entry.crc32:
                    raise store_damaged(entry.key, "missing, or its bytes changed since it was written")
        found: dict[str, Any] = anndata.io.read_elem(stored)
        return found

    @property
    def obsm_frames(self) -> dict[str, tuple[str, ...]]:
        """Columns of each obsm entry that is a table, by name; its columns are read like those of obs."""
        return {
            name: tuple(group.attrs["column-order"])
            for name, group in self._root["obsm"].groups()
            if group.attrs.get("encoding-type") == "dataframe"
        }

    # Matrices and embeddings.

    def matrix(self, layer: str | None = None) -> Matrix:
        """Open X, a layer, or with ``"raw"`` the matrix of AnnData's ``raw``; its genes are `matrix_var`.

        Raises
        ------
        ColumnNotFoundError
            If there is no such layer.
        """
        return self.open_matrix(self._matrix_name(layer))

    def matrix_var(self, layer: str | None = None) -> pd.DataFrame:
        """Return the var table of a matrix that `matrix` opens: raw has its own.

        Raises
        ------
        ColumnNotFoundError
            If there is no such layer.
        """
        return self.raw_var if self._matrix_name(layer) == RAW else self.var

    def _matrix_name(self, layer: str | None) -> str:
        name = matrix_name(layer, self.matrices)
        if name not in self.matrices:
            known = [other.removeprefix("layers/") for other in self.matrices if other.startswith("layers/")]
            known += ["raw"] * (RAW in self.matrices)
            raise no_such_column("layer", str(layer), "a layer", known, of=self.path)
        return name

    def open_matrix(self, name: str) -> Matrix:
        """Open one of `matrices` by its full name."""
        arrays = {array: self.open_array(f"{name}/{array}") for array in ("indptr", "indices", "data")}
        stats = self.attrs["matrices"][name]
        return Matrix(name, (self.n_obs, stats["n_cols"]), arrays, stats)

    @property
    def obsm(self) -> dict[str, DenseArray]:
        """Embeddings by name; sparse obsm entries are among `matrices`."""
        arrays = self._root["obsm"].arrays()
        return {name: DenseArray(self.reader, array, f"obsm/{name}") for name, array in arrays}

    # One-dimensional arrays, either opened for reading by ranges or read completely.

    def open_array(self, path: str) -> ShardedArray:
        """Open a numeric array, such as ``"obs/batch/codes"``.

        Its dtype is the stored one, which differs from the one that other readers see in the values of a matrix.
        """
        array = self._root[path]
        grid = Grid(array.shape[0], array.chunks[0], array.shards[0])
        (sharding,) = array.metadata.to_dict()["codecs"]
        try:
            dtype, is_delta = stored_elements(array.dtype, sharding["configuration"]["codecs"])
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise store_damaged(f"{path}/zarr.json", str(error)) from error
        return ShardedArray(self._reader_of(path), path, dtype, grid, is_delta=is_delta)

    def open_strings(self, path: str) -> StringArray:
        """Open an array of strings, such as ``"obs/_index"``."""
        return StringArray(self._reader_of(path), self._root[path], path)

    def _reader_of(self, path: str) -> ByteReader:
        """Return the reader of an array's files; those of obs columns may be replaced while the store is open."""
        if not isinstance(self.reader, CheckedReader) or not path.startswith("obs/") or path.startswith(f"{TABLES}/"):
            return self.reader
        return CheckedReader(self.reader.reader, self.attrs, self._root_identity, "/".join(path.split("/")[:2]))

    def read_array(self, path: str) -> NDArray[Any]:
        """Read all of a numeric array."""
        array = self.open_array(path)
        return array.read(0, len(array))

    def read_manifest(self) -> list[Entry]:
        """Read the manifest: one entry per file."""
        keys = self.read_strings(f"{MANIFEST}/key")
        sizes, checksums = self.read_array(f"{MANIFEST}/size"), self.read_array(f"{MANIFEST}/crc32")
        return [Entry(str(key), int(size), int(crc)) for key, size, crc in zip(keys, sizes, checksums, strict=True)]

    @cached_property
    def content_digest(self) -> str:
        """SHA-256 of the sizes and checksums of all files of values that were converted.

        Two conversions of one file with one `compression` have the same digest, with whatever version of Zarr they were
        made: metadata, whose text differs between versions, do not count, nor does what was added to the store later.
        """
        try:
            entries, added = self.read_manifest(), self.added
            is_current = manifest_digest(entries) == self.attrs["manifest_digest"]
        except (StoreDamagedError, ValueError):
            is_current = False
        if not is_current:  # the manifest is rewritten when something is added to the store, which may be now
            current = Store(self.given, self.storage_options)
            entries, added = current.read_manifest(), current.added
        return manifest_digest(
            entry for entry in entries if not entry.key.endswith("zarr.json") and not is_within(entry.key, added)
        )

    @property
    def added(self) -> dict[str, str]:
        """Digest of every element that was added after the conversion, by its path, such as ``"obs/guide"``."""
        return dict(self.attrs.get(ADDED, {}))

    def digest_with(self, elements: Collection[str]) -> str:
        """Return the `content_digest`, combined with the digests of those elements that were added.

        Parameters
        ----------
        elements
            Paths of what is used, such as ``"obs/guide"`` and ``"obsm/X_scvi"``.
        """
        return combined_digest(self.content_digest, self.added, elements)

    def read_strings(self, path: str) -> NDArray[Any]:
        """Read all of an array of strings, as an object array."""
        array = self.open_strings(path)
        return array.read(0, len(array))

    def read_categories(self, path: str) -> NDArray[Any]:
        """Read the categories of a categorical column: strings, or numbers."""
        categories = f"{path}/categories"
        is_text = self.encoding(categories) == "string-array"
        return self.read_strings(categories) if is_text else self.read_array(categories)

    def read_column(self, path: str) -> Any:
        """Read all of an obs or var column as pandas would hold it: an array, a Categorical or a nullable array."""
        encoding = self.encoding(path)
        if encoding == "categorical":
            codes = self.read_array(f"{path}/codes")
            return pd.Categorical.from_codes(codes, self.read_categories(path), ordered=self.is_ordered(path))
        if encoding == "string-array":
            return self.read_strings(path)
        if encoding == "nullable-string-array":
            text = self.read_strings(f"{path}/values")
            text[self.read_array(f"{path}/mask")] = None
            return text
        if encoding.startswith("nullable-"):
            values, mask = self.read_array(f"{path}/values"), self.read_array(f"{path}/mask")
            array = pd.arrays.BooleanArray if encoding == "nullable-boolean" else pd.arrays.IntegerArray
            return array(values, mask)
        return self.read_array(path)

    # Tables, each read when it is first used.

    def has_table(self, name: str) -> bool:
        """Whether lazypert's tables include one of this name."""
        return f"{TABLES}/{name}" in self._root

    @cached_property
    def var(self) -> pd.DataFrame:
        """The var table, indexed by gene name."""
        return self._read_var("var")

    @cached_property
    def raw_var(self) -> pd.DataFrame:
        """The var table of AnnData's ``raw``; only for stores with the matrix ``"raw/X"``."""
        return self._read_var("raw/var")

    def _read_var(self, path: str) -> pd.DataFrame:
        return pd.DataFrame(
            {name: self.read_column(f"{path}/{name}") for name in self._root[path].attrs["column-order"]},
            index=pd.Index(self.read_strings(f"{path}/_index")),
        )

    @cached_property
    def groups(self) -> Groups:
        """Groups by the store's own roles."""
        self.reader.hold(group_objects(self._root) if self.is_remote else [])
        return read_groups(self)

    @property
    def has_cell_stats(self) -> bool:
        """Whether the store holds cell statistics; stores of format version 1 do not."""
        return _CELL_STATS in self._root

    @cached_property
    def cell_stats(self) -> StoredCellStats | None:
        """Cell statistics that quality control can use, or None in a store without them."""
        if not self.has_cell_stats or self.format_version < 3:  # version 2 knows the controls by other runs
            return None
        control_row = self.read_array(f"{_CELL_STATS}/control_row")
        control_sum = self.read_array(f"{_CELL_STATS}/control_sum")
        return StoredCellStats(
            gene_col=self._root[_CELL_STATS].attrs["gene_col"],
            total=self.open_array(f"{_CELL_STATS}/total"),
            n_genes=self.open_array(f"{_CELL_STATS}/n_genes"),
            own_target=self.open_array(f"{_CELL_STATS}/own_target"),
            target=self.read_array(f"{_CELL_STATS}/target"),
            control_sum=control_sum.reshape(len(control_row), len(self.groups.labels["perturbation"])),
            control_row=control_row,
        )


def _reopen(
    given: Any, storage_options: dict[str, Any] | None, cache: tuple[Any, int | str], version: Version
) -> Store:
    """Open a store that another process had open; raise `StoreChangedError` if it was replaced meanwhile."""
    cache_dir, cache_size = cache
    is_local = isinstance(given, str | Path) and not is_url(given)
    if is_local and this_worker() is not None and LocalReader(Path(given)).root_identity() is None:
        raise store_gone(str(given))
    store = Store(given, storage_options, cache_dir=cache_dir, cache_size=cache_size)
    if version.is_replaced_by(Version.of(store.attrs)):
        raise store_changed(store.path)
    return store


def _name_of(store: ZarrStore) -> str:
    """Return a text for a Zarr store, in the form of a URL."""
    text = str(store)
    return text if "://" in text else f"zarr://{text}"
