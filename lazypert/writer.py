"""Writing a store: create, template, write shards, finalise. Until the last step there is no store."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import threading
import uuid
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from lazypert.errors import SourceFormatError, StoreExistsError
from lazypert.manifest import MANIFEST, MANIFEST_FILES, Entry, manifest_digest, root_digest
from lazypert.schema import COMPRESSOR, FORMAT_VERSION, MARKER, TABLES, Grid
from lazypert.shards import encode_shard, write_pieces

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

_RESERVED = {"", ".", "..", "_index", "zarr.json", TABLES.rpartition("/")[2]}
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
_CONSOLIDATING = threading.Lock()  # warning filters belong to the whole process


@dataclass(frozen=True, slots=True)
class Template:
    """An array whose metadata are written and whose shards are not: enough to write any of them."""

    root: Path
    path: str
    dtype: np.dtype[Any]
    grid: Grid

    def write_shard(self, shard: int, values: NDArray[Any]) -> Entry:
        """Write one whole shard; each is written once, by one writer.

        Parameters
        ----------
        values
            Exactly the elements of ``grid.span(shard)``.
        """
        start, stop = self.grid.span(shard)
        assert values.shape == (stop - start,), (self.path, shard, values.shape)
        values = values.astype(self.dtype, copy=False)
        key = f"{self.path}/c/{shard}"
        size, crc = write_pieces(self.root / key, encode_shard(values, self.grid))
        return Entry(key, size, crc)


class StoreWriter:
    """Builds a store in ``<target>.partial-<id>`` and renames it into place when all is on disk.

    Use as a context manager: leaving it before `finalise` removes what was written.

    Raises
    ------
    StoreExistsError
        When `target` exists and `overwrite` is False, or is not a Zarr store; raised before anything
        is written.
    """

    def __init__(self, target: str | Path, *, overwrite: bool = False) -> None:
        self.target = Path(target)
        self._overwrite = overwrite
        if self.target.exists() and not overwrite:
            raise self._exists()
        if self.target.exists() and not _is_replaceable(self.target):
            raise StoreExistsError(
                f"{str(self.target)!r} exists and is not a Zarr store: overwrite=True replaces stores only, so that "
                "a mistyped path deletes nothing else. Nothing was written; choose another target."
            )
        self.root = self.target.with_name(f"{self.target.name}.partial-{uuid.uuid4().hex[:8]}")
        self.root.mkdir(parents=True)
        self._entries: dict[str, Entry] = {}
        self._zarr = zarr.open_group(self.root, mode="w", zarr_format=3)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self.root.exists():
            shutil.rmtree(self.root, ignore_errors=True)

    def _exists(self) -> StoreExistsError:
        return StoreExistsError(
            f"{str(self.target)!r} exists already, and nothing was written. Pass overwrite=True to replace it "
            "once the new store is complete, or choose another target."
        )

    def group(self, path: str, attrs: dict[str, Any]) -> None:
        """Create a group with its attributes."""
        self._zarr.require_group(path).attrs.update(attrs)

    def template(self, path: str, dtype: Any, grid: Grid, attrs: dict[str, Any] | None = None) -> Template:
        """Create a one-dimensional array without values."""
        dtype = np.dtype(dtype).newbyteorder("=")  # what Zarr's metadata say of the bytes
        self._create(path, (grid.length,), dtype, (grid.chunk,), (grid.shard,), attrs)
        return Template(self.root, path, dtype, grid)

    def add(self, entries: Iterable[Entry]) -> None:
        """Note shards that tasks have written."""
        self._entries.update((entry.key, entry) for entry in entries)

    def array(self, path: str, values: NDArray[Any], attrs: dict[str, Any] | None = None) -> None:
        """Write a numeric one-dimensional array."""
        template = self.template(path, values.dtype, Grid.column(len(values)), attrs)
        for shard in range(template.grid.n_shards):
            start, stop = template.grid.span(shard)
            self.add([template.write_shard(shard, values[start:stop])])

    def strings(self, path: str, values: Any, attrs: dict[str, Any] | None = None) -> None:
        """Write an array of variable-length strings (AnnData's ``string-array``)."""
        grid = Grid.column(len(values))
        attrs = {"encoding-type": "string-array", "encoding-version": "0.2.0"} | (attrs or {})
        array = self._create(path, (grid.length,), "string", (grid.chunk,), (grid.shard,), attrs)
        for shard in range(grid.n_shards):
            start, stop = grid.span(shard)
            array[start:stop] = np.asarray(values[start:stop], dtype=object)

    def dense(self, path: str, shape: tuple[int, int], dtype: Any) -> Any:
        """Create a dense (cell, feature) array in row chunks; rows are assigned by whole chunks.

        Returns
        -------
        The Zarr array; ``array.chunks[0]`` is the number of rows to assign at once.
        """
        rows = max(1, min(shape[0], 4_194_304 // max(1, shape[1] * np.dtype(dtype).itemsize)))
        attrs = {"encoding-type": "array", "encoding-version": "0.2.0"}
        return self._create(path, shape, np.dtype(dtype), (rows, max(1, shape[1])), None, attrs)

    def _create(self, path: str, shape: Any, dtype: Any, chunks: Any, shards: Any, attrs: dict[str, Any] | None) -> Any:
        return self._zarr.create_array(
            path,
            shape=shape,
            dtype=dtype,
            chunks=chunks,
            shards=shards,
            filters=None,
            compressors=[BloscCodec(**COMPRESSOR), Crc32cCodec()],  # type: ignore[arg-type]
            fill_value="" if dtype == "string" else 0,
            attributes=attrs or {},
            # A shard that is not there must never look like one full of zeros.
            config={"write_empty_chunks": True},
        )

    def column(self, frame: str, name: str, values: Any) -> None:
        """Write one column of an AnnData dataframe, in AnnData's encoding for its type."""
        if name in _RESERVED or "/" in name:
            raise SourceFormatError(
                f"A column of {frame} is named {name!r}, which cannot be the name of a Zarr array. "
                "Rename the column in the source. No store was made."
            )
        path = f"{frame}/{name}"
        if isinstance(values, pd.Series):
            values = values.array
        if isinstance(values, pd.arrays.NumpyExtensionArray) and not isinstance(values.dtype, pd.StringDtype):
            values = values.to_numpy()
        if isinstance(values, pd.Categorical):
            self._categorical(path, values)
        elif isinstance(values, pd.arrays.IntegerArray | pd.arrays.BooleanArray | pd.arrays.FloatingArray):
            kind = {"b": "boolean", "f": "float"}.get(values.dtype.kind, "integer")
            if kind == "float":  # AnnData has no nullable floats; NaN says the same
                self._plain(path, values.to_numpy(dtype=np.float64, na_value=np.nan))
                return
            self.group(path, {"encoding-type": f"nullable-{kind}", "encoding-version": "0.1.0"})
            mask = np.asarray(values.isna())
            self._plain(f"{path}/values", values.to_numpy(dtype=values.dtype.numpy_dtype, na_value=0))
            self._plain(f"{path}/mask", mask)
        elif isinstance(values, np.ndarray) and values.dtype.kind in "fiub":
            self._plain(path, values)
        else:
            self._text(path, values)

    def _plain(self, path: str, values: NDArray[Any]) -> None:
        self.array(path, values, {"encoding-type": "array", "encoding-version": "0.2.0"})

    def _text(self, path: str, values: Any) -> None:
        mask = np.asarray(pd.isna(values))
        kind = getattr(values, "dtype", None)
        if not mask.any() and not isinstance(kind, pd.StringDtype):
            self.strings(path, values)
            return
        attrs = {"encoding-type": "nullable-string-array", "encoding-version": "0.1.0"}
        nan = isinstance(kind, pd.StringDtype) and kind.na_value is not pd.NA
        self.group(path, {**attrs, "na-value": "NaN" if nan else "NA"})
        self.strings(f"{path}/values", np.where(mask, "", np.asarray(values, dtype=object)))
        self._plain(f"{path}/mask", mask)

    def _categorical(self, path: str, values: pd.Categorical) -> None:
        attrs = {"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": bool(values.ordered)}
        self.group(path, attrs)
        n = len(values.categories)
        self._plain(f"{path}/codes", values.codes.astype("i1" if n < 2**7 else "i2" if n < 2**15 else "i4"))
        categories = np.asarray(values.categories)
        if categories.dtype.kind in "fiub":
            self._plain(f"{path}/categories", categories)
        else:
            self.strings(f"{path}/categories", categories.astype(object))

    def frame(self, path: str, index: Any, columns: list[str]) -> None:
        """Create an AnnData dataframe group and its index; columns follow with `column`."""
        attrs: dict[str, Any] = {"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"}
        self.group(path, {**attrs, "column-order": list(columns)})
        self.strings(f"{path}/_index", index)

    def finalise(self, attrs: dict[str, Any]) -> Path:
        """Make the store real: manifest, root metadata, sync to disk, rename.

        Parameters
        ----------
        attrs
            Entries of the root attribute ``lazypert``, beside the format version and digests.

        Raises
        ------
        StoreExistsError
            When another writer finished a store at the target in the meantime.
        """
        self.group(MANIFEST, {})
        entries = self._manifest()
        self._write_manifest(entries)
        ours = {"format_version": FORMAT_VERSION, **attrs, "manifest_digest": manifest_digest(entries)}
        root: dict[str, Any] = {"encoding-type": "anndata", "encoding-version": "0.1.0", MARKER: ours}
        self._zarr.attrs.update(root)
        with _CONSOLIDATING, warnings.catch_warnings():  # AnnData and Zarr both write and read it for version 3
            warnings.filterwarnings("ignore", message="Consolidated metadata", category=UserWarning)
            zarr.consolidate_metadata(self.root, zarr_format=3)
        self._seal()
        _sync_tree(self.root)
        self._rename()
        return self.target

    def _seal(self) -> None:
        """Put into the root metadata what the manifest cannot list: its own files, and the root itself."""
        file = self.root / "zarr.json"
        metadata = json.loads(file.read_bytes())
        listed = [self._entry(path) for path in sorted((self.root / MANIFEST).rglob("*/*")) if path.is_file()]
        metadata["attributes"][MARKER][MANIFEST_FILES] = [[e.key, e.size, e.crc32] for e in listed]
        metadata["attributes"][MARKER]["root_digest"] = root_digest(metadata)
        file.write_text(json.dumps(metadata, indent=1))

    def _manifest(self) -> list[Entry]:
        entries = dict(self._entries)
        for file in sorted(self.root.rglob("*")):
            key = file.relative_to(self.root).as_posix()
            if file.is_file() and key != "zarr.json" and key not in entries:
                entries[key] = self._entry(file)
        return [entries[key] for key in sorted(entries)]

    def _entry(self, file: Path) -> Entry:
        data = file.read_bytes()
        return Entry(file.relative_to(self.root).as_posix(), len(data), zlib.crc32(data))

    def _write_manifest(self, entries: list[Entry]) -> None:
        self.strings(f"{MANIFEST}/key", np.array([entry.key for entry in entries], dtype=object))
        self.array(f"{MANIFEST}/size", np.array([entry.size for entry in entries], dtype="i8"))
        self.array(f"{MANIFEST}/crc32", np.array([entry.crc32 for entry in entries], dtype="u4"))

    def _rename(self) -> None:
        old = None
        if self.target.exists():
            if not self._overwrite:
                raise self._exists()
            old = self.target.with_name(f"{self.target.name}.old-{uuid.uuid4().hex[:8]}")
            try:
                self.target.rename(old)
            except FileNotFoundError:  # another writer has just moved it away
                old = None
        try:
            self.root.rename(self.target)
        except OSError as error:
            if old is not None and not self.target.exists():
                old.rename(self.target)
            if error.errno not in _TAKEN:
                raise
            raise self._exists() from error
        _sync(self.target.parent)
        if old is not None:
            shutil.rmtree(old) if old.is_dir() else old.unlink()


def _is_replaceable(target: Path) -> bool:
    """Whether a folder is a Zarr store (perhaps a damaged one) or empty."""
    return target.is_dir() and ((target / "zarr.json").exists() or not any(target.iterdir()))


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_tree(root: Path) -> None:
    """Bytes must be on disk before the rename says that they are."""
    for path in sorted(root.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            _sync(path)
    _sync(root)
