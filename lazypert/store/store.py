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
from lazypert.store.arrays import DenseArray
from lazypert.store.byte_reader import LocalReader
from lazypert.store.content_checks import check_attributes, check_codes, contradiction
from lazypert.store.damage import store_damaged
from lazypert.store.format import (
    APPENDED,
    APPENDED_VERSION,
    MARKER,
    RAW,
    TABLES,
    group_tables,
    matrix_name,
)
from lazypert.store.manifest import MANIFEST, Entry, manifest_digest
from lazypert.store.matrix import Matrix
from lazypert.store.opening import open_root
from lazypert.store.replaced import CheckedReader, Version, store_changed, store_gone
from lazypert.store.store_columns import StoreColumns
from lazypert.store.stored_cell_stats import StoredCellStats
from lazypert.store.stored_groups import read_groups
from lazypert.store.table_objects import group_objects

if TYPE_CHECKING:
    from collections.abc import Collection

    from lazypert.screen.groups import Groups
    from lazypert.store.format import Compression

DEFAULT_CACHE_SIZE = "20GiB"

_CELL_STATS = f"{TABLES}/facts"


class Store(StoreColumns):
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
        root: Any  # a Zarr group, whose type does not say what a path holds
        reader, root, identity = open_root(self.path, storage_options, self._zarr_store, cache)
        attrs: dict[str, Any] = dict(root.attrs[MARKER])
        version = attrs.get("format_version")
        if not isinstance(version, int):
            raise store_damaged(f"{self.path}/zarr.json", f"format_version: got {version!r}, expected an integer")
        if version > APPENDED_VERSION:
            raise StoreNotFoundError(
                f"format_version: got {version} in {self.path!r}, expected at most {APPENDED_VERSION}. "
                "Upgrade lazypert to read this store."
            )
        self.format_version: int = version
        check_attributes(attrs)
        super().__init__(CheckedReader(reader, attrs, identity), root, identity, attrs)

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
        return self._column_order("obs")

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
        if len(arrays["indptr"]) != self.n_obs + 1 or arrays["indptr"].dtype.kind not in "iu":
            raise contradiction(
                f"{name}/indptr", f"got {len(arrays['indptr']):,} row bounds, expected {self.n_obs + 1:,}"
            )
        for array in ("indices", "data"):
            if len(arrays[array]) != stats["nnz"]:
                raise contradiction(f"{name}/{array}", f"got {len(arrays[array]):,} values, expected {stats['nnz']:,}")
        if arrays["indices"].dtype.kind not in "iu" or arrays["data"].dtype.kind not in "iufb":
            raise contradiction(name, "got column numbers or values of a type that matrices do not have")
        arrays["indices"].limit = stats["n_cols"]
        return Matrix(name, (self.n_obs, stats["n_cols"]), arrays, stats)

    @property
    def obsm(self) -> dict[str, DenseArray]:
        """Embeddings by name; sparse obsm entries are among `matrices`."""
        arrays = self._root["obsm"].arrays()
        return {name: DenseArray(self.reader, array, f"obsm/{name}") for name, array in arrays}

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
            if len(current.appended) > len(self.appended):  # which says what the digest was before
                return str(current.appended[len(self.appended)]["before"]["content_digest"])
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

    # Tables, each read when it is first used.

    def has_table(self, name: str) -> bool:
        """Whether the tables of groups include one of this name."""
        return f"{self.group_tables}/{name}" in self._root

    @property
    def appended(self) -> list[dict[str, Any]]:
        """One record per time that cells were appended after the conversion, the first one first."""
        return list(self.attrs.get(APPENDED, ()))

    @property
    def group_tables(self) -> str:
        """Path of the tables of groups, of which a store has one set per time that cells were appended."""
        return group_tables(len(self.appended))

    @cached_property
    def var(self) -> pd.DataFrame:
        """The var table, indexed by gene name."""
        return self._read_var("var")

    @cached_property
    def raw_var(self) -> pd.DataFrame:
        """The var table of AnnData's ``raw``; only for stores with the matrix ``"raw/X"``."""
        return self._read_var("raw/var")

    def _read_var(self, path: str) -> pd.DataFrame:
        n_genes = self.attrs["matrices"].get(RAW, {}).get("n_cols") if path == "raw/var" else self.n_vars
        columns = {name: self.read_column(f"{path}/{name}") for name in self._column_order(path)}
        index = self.read_strings(f"{path}/_index")
        for name, column in {"_index": index, **columns}.items():
            if len(column) != n_genes:
                raise contradiction(f"{path}/{name}", f"got {len(column):,} values, expected {n_genes:,}, one per gene")
        return pd.DataFrame(columns, index=pd.Index(index))

    @cached_property
    def groups(self) -> Groups:
        """Groups by the store's own roles."""
        self.reader.hold(group_objects(self._root) if self.is_remote else [])
        return read_groups(self)

    @property
    def has_cell_stats(self) -> bool:
        """Whether the store holds cell statistics; stores of format version 1 do not."""
        return f"{self.group_tables}/facts" in self._root

    @cached_property
    def cell_stats(self) -> StoredCellStats | None:
        """Cell statistics that quality control can use, or None in a store without them."""
        if not self.has_cell_stats or self.format_version < 3:  # version 2 knows the controls by other runs
            return None
        of_groups = f"{self.group_tables}/facts"
        control_row = self.read_array(f"{of_groups}/control_row")
        control_sum = self.read_array(f"{of_groups}/control_sum")
        target, labels = self.read_array(f"{of_groups}/target"), self.groups.labels["perturbation"]
        check_codes(f"{of_groups}/target", target, self.n_vars)
        if len(target) != len(labels) or len(control_sum) != len(control_row) * len(labels):
            raise contradiction(of_groups, f"its tables are not those of {len(labels):,} perturbations")
        if len(control_row) and not 0 <= int(control_row.min()) <= int(control_row.max()) < self.n_obs:
            raise contradiction(f"{of_groups}/control_row", "got rows that do not exist")
        return StoredCellStats(
            gene_col=self._attribute(of_groups, "gene_col"),
            total=self.open_array(f"{_CELL_STATS}/total"),
            n_genes=self.open_array(f"{_CELL_STATS}/n_genes"),
            own_target=self.open_array(f"{_CELL_STATS}/own_target"),
            target=target,
            control_sum=control_sum.reshape(len(control_row), len(labels)),
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
    if version.is_replaced_by(Version.of(store.attrs), allow_appended=False):
        raise store_changed(store.path)
    return store


def _name_of(store: ZarrStore) -> str:
    """Return a text for a Zarr store, in the form of a URL."""
    text = str(store)
    return text if "://" in text else f"zarr://{text}"
