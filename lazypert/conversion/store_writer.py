"""Writing a store: create, template, write shards, finalise. No store exists before the last step."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from lazypert._internal.files import crc32_of, swap, sync, write_atomic
from lazypert.conversion.staging import StagingDirectory
from lazypert.errors import DiskFullError, LazypertError, MachineError, StoreExistsError
from lazypert.store.format import CODEC, FORMAT_VERSION, MARKER, Codec, Grid, astype_codec
from lazypert.store.manifest import MANIFEST, MANIFEST_FILES, Entry, manifest_digest, root_digest
from lazypert.store.shard_encoding import encode_shard
from lazypert_zarr import AsType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    SliceWriter = Callable[[int, Any], None]

_LOG = logging.getLogger("lazypert")
_TRANSIENT = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
_MATRIX_FILE = re.compile(r".+/(data|indices|indptr)/(c/\d+|zarr\.json)")
_TARGET_EXISTS = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


@dataclass(frozen=True, slots=True)
class Template:
    """An array with metadata but no shards yet: enough for any task to write one of them."""

    root: Path
    path: str
    dtype: np.dtype[Any]
    grid: Grid
    codec: Codec = CODEC

    def write_shard(self, shard: int, values: NDArray[Any]) -> Entry:
        """Write one complete shard.

        Parameters
        ----------
        values
            The elements of ``grid.span(shard)``, all of them.
        """
        start, stop = self.grid.span(shard)
        assert values.shape == (stop - start,), (self.path, shard, values.shape)
        values = values.astype(self.dtype, copy=False)
        key = f"{self.path}/c/{shard}"
        size, crc = write_atomic(self.root / key, encode_shard(values, self.grid, self.codec))
        return Entry(key, size, crc)


class StoreWriter:
    """Builds a store in a staging directory and renames it to its target once everything is on disk.

    Use it as a context manager. Leaving it before `finalise` deletes what was written, unless the
    work has a fingerprint and was interrupted from outside (Ctrl-C, a full disk, a lost worker):
    then the staging directory stays, and the next writer with the same fingerprint reuses its shards.

    Parameters
    ----------
    target
        Path of the finished store.
    overwrite
        Replace a store at the target, once the new one is complete.
    fingerprint
        See `lazypert.conversion.staging.StagingDirectory`.

    Raises
    ------
    StoreExistsError
        If `target` exists and `overwrite` is False, if it is not a Zarr store, or if another
        process is writing to it; nothing has been written by then.
    """

    def __init__(self, target: str | Path, *, overwrite: bool = False, fingerprint: str | None = None) -> None:
        self.target = Path(target)
        self._overwrite = overwrite
        self.check(self.target, overwrite=overwrite)
        self._can_resume = fingerprint is not None
        self.staging = StagingDirectory(self.target, fingerprint)
        self.root = self.staging.store
        self._entries: dict[str, Entry] = {}
        if self.staging.is_resumed:
            _delete_all_but_matrices(self.root)
        self._zarr = zarr.open_group(self.root, mode="a", zarr_format=3)

    def __repr__(self) -> str:
        return f"StoreWriter({str(self.target)!r})"

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        keep = self._can_resume and _is_interruption(error)
        if keep:
            _LOG.info("interrupted: the same conversion will resume from %s", self.staging.folder)
        self.staging.release(keep=keep)

    @staticmethod
    def check(target: Path, *, overwrite: bool) -> None:
        """Raise `StoreExistsError` if the target exists and may not be replaced."""
        if target.exists() and not overwrite:
            raise _target_exists(target)
        if target.exists() and not _is_replaceable(target):
            raise StoreExistsError(
                f"store: {str(target)!r} exists and is not a Zarr store. overwrite=True replaces only stores, so that "
                "a mistyped path deletes nothing else. Choose another path. Nothing was written."
            )

    def group(self, path: str, attrs: dict[str, Any]) -> None:
        """Create a group with its attributes."""
        self._zarr.require_group(path).attrs.update(attrs)

    def open_group(self, path: str) -> zarr.Group:
        """Return a group for another library to write to; the manifest lists what it writes."""
        return self._zarr.require_group(path)

    def template(
        self,
        path: str,
        dtype: Any,
        grid: Grid,
        attrs: dict[str, Any] | None = None,
        *,
        codec: Codec = CODEC,
        declared: np.dtype[Any] | None = None,
        keep: bool = False,
    ) -> Template:
        """Create a one-dimensional array without values; with `keep`, existing shards stay.

        Values are stored with `dtype`, and other readers get them as `declared` (None: the same).
        """
        dtype = np.dtype(dtype).newbyteorder("=")  # as Zarr's metadata states
        if keep:
            (self.root / path / "zarr.json").unlink(missing_ok=True)
        lengths = (grid.length,), (grid.chunk,), (grid.shard,)
        self._create(path, dtype, lengths, attrs, codec=codec, declared=declared, overwrite=not keep)
        folder = self.root / path / "c"
        folder.mkdir(exist_ok=True)
        for file in folder.iterdir():
            if file.name not in map(str, range(grid.n_shards)):
                file.unlink()
        return Template(self.root, path, dtype, grid, codec)

    def add(self, entries: Iterable[Entry]) -> None:
        """Add files that tasks have written to the manifest."""
        self._entries.update((entry.key, entry) for entry in entries)

    def array(self, path: str, values: NDArray[Any], attrs: dict[str, Any] | None = None) -> None:
        """Write a numeric one-dimensional array."""
        self.column(path, values.dtype, len(values), attrs)(0, values)

    def strings(self, path: str, values: Any, attrs: dict[str, Any] | None = None) -> None:
        """Write an array of variable-length strings (AnnData's ``string-array``)."""
        self.column(path, "string", len(values), attrs)(0, values)

    def column(self, path: str, dtype: Any, length: int, attrs: dict[str, Any] | None = None) -> SliceWriter:
        """Create a one-dimensional array that is written slice by slice.

        Parameters
        ----------
        dtype
            A numeric dtype, or ``"string"``.

        Returns
        -------
        A function of (start, values), where every `start` is a multiple of `COLUMN_SHARD`.
        """
        grid = Grid.column(length)
        if dtype == "string":
            attrs = {"encoding-type": "string-array", "encoding-version": "0.2.0"} | (attrs or {})
            array = self._create(path, "string", ((length,), (grid.chunk,), (grid.shard,)), attrs)
        else:
            template = self.template(path, dtype, grid, attrs)

        def write(start: int, values: Any) -> None:
            assert start % grid.shard == 0, (path, start)
            for first in range(start, start + len(values), grid.shard):
                shard_values = values[first - start : first - start + grid.shard]
                if dtype == "string":
                    array[first : first + len(shard_values)] = np.asarray(shard_values, dtype=object)
                else:
                    self.add([template.write_shard(first // grid.shard, shard_values)])

        return write

    def dense(self, path: str, shape: tuple[int, int], dtype: Any) -> Any:
        """Create a dense (cell, feature) array in chunks of rows.

        Returns
        -------
        The Zarr array. Assign a multiple of ``array.chunks[0]`` rows at a time.
        """
        rows = max(1, min(shape[0], 4_194_304 // max(1, shape[1] * np.dtype(dtype).itemsize)))
        attrs = {"encoding-type": "array", "encoding-version": "0.2.0"}
        return self._create(path, np.dtype(dtype), (shape, (rows, max(1, shape[1])), None), attrs)

    def _create(
        self,
        path: str,
        dtype: Any,
        lengths: tuple[Any, Any, Any],
        attrs: dict[str, Any] | None,
        *,
        codec: Codec = CODEC,
        declared: np.dtype[Any] | None = None,
        overwrite: bool = True,
    ) -> Any:
        blosc, filters = asdict(codec), None
        if declared is not None and declared != dtype:
            blosc["typesize"] = dtype.itemsize  # by default Zarr takes that of the declared dtype
            filters = [AsType.from_dict(astype_codec(dtype, declared))]
        return self._zarr.create_array(
            path,
            **dict(zip(("shape", "chunks", "shards"), lengths, strict=True)),
            dtype=dtype if declared is None else declared,
            filters=filters,
            compressors=[BloscCodec(**blosc), Crc32cCodec()],
            fill_value="" if dtype == "string" else 0,
            attributes=attrs or {},
            # A missing shard must never read as zeros.
            config={"write_empty_chunks": True},
            overwrite=overwrite,
        )

    def finalise(self, attrs: dict[str, Any]) -> Path:
        """Complete the store: write the manifest and root metadata, sync to disk, rename.

        Parameters
        ----------
        attrs
            Entries of the root attribute ``lazypert``; the format version and digests are added.

        Raises
        ------
        StoreExistsError
            If a store has appeared at the target in the meantime.
        """
        self.group(MANIFEST, {})
        entries = self._all_entries()
        self._write_manifest(entries)
        self._write_root({"format_version": FORMAT_VERSION, **attrs, "manifest_digest": manifest_digest(entries)})
        _sync_tree(self.root)
        self._publish()
        return self.target

    def _write_root(self, attrs: dict[str, Any]) -> None:
        """Write the root metadata, which also cover what the manifest cannot list: its own files and the root."""
        file = self.root / "zarr.json"
        metadata = json.loads(file.read_bytes()) | {"consolidated_metadata": _consolidated_metadata(self.root)}
        files = sorted(path for path in (self.root / MANIFEST).rglob("*/*") if path.is_file())
        entries = [self.entry(path.relative_to(self.root).as_posix()) for path in files]
        attrs = attrs | {MANIFEST_FILES: [[e.key, e.size, e.crc32] for e in entries]}
        metadata["attributes"] = {"encoding-type": "anndata", "encoding-version": "0.1.0", MARKER: attrs}
        attrs["root_digest"] = root_digest(metadata)
        write_atomic(file, [json.dumps(metadata, indent=1).encode()])

    def _all_entries(self) -> list[Entry]:
        entries = dict(self._entries)
        for file in sorted(self.root.rglob("*")):
            key = file.relative_to(self.root).as_posix()
            if file.is_file() and key != "zarr.json" and key not in entries:
                entries[key] = self.entry(key)
        return [entries[key] for key in sorted(entries)]

    def entry(self, key: str) -> Entry:
        """Return the size and checksum of a file of the store."""
        size_and_crc = crc32_of(self.root / key)
        assert size_and_crc is not None, key
        return Entry(key, *size_and_crc)

    def _write_manifest(self, entries: list[Entry]) -> None:
        self.strings(f"{MANIFEST}/key", np.array([entry.key for entry in entries], dtype=object))
        self.array(f"{MANIFEST}/size", np.array([entry.size for entry in entries], dtype="i8"))
        self.array(f"{MANIFEST}/crc32", np.array([entry.crc32 for entry in entries], dtype="u4"))

    def _publish(self) -> None:
        """Rename the store to its target: only one writer can win, and a replaced store is never missing."""
        if self._overwrite and self.target.exists():
            old = self.staging.path_for_replaced_store()
            self.root.rename(old)
            swap(old, self.target)
            sync(self.target.parent)
            shutil.rmtree(old, ignore_errors=True)
            if old.exists():
                _LOG.warning("the replaced store could not be deleted: %s", old)
            return
        try:
            self.root.rename(self.target)
        except OSError as error:
            if error.errno not in _TARGET_EXISTS:
                raise
            raise _target_exists(self.target) from error
        sync(self.target.parent)


def _consolidated_metadata(root: Path) -> dict[str, Any]:
    """Collect the metadata of all groups and arrays, as AnnData and Zarr do in version 3 too.

    Zarr writes them in an order that ignores case, which mixes the children of ``obs/Study`` with those of
    ``obs/study``, and up to version 3.1 it then reads back only the last of each. Here siblings are always together.
    """
    found: dict[str, Any] = {}
    folders = [file.parent.relative_to(root) for file in root.rglob("zarr.json")]
    for path in sorted((path for path in folders if path.parts), key=lambda path: (len(path.parts), path.parts)):
        node = json.loads((root / path / "zarr.json").read_bytes())
        if node["node_type"] == "group":
            node["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": {}}
        found[path.as_posix()] = node
    return {"kind": "inline", "must_understand": False, "metadata": found}


def _delete_all_but_matrices(root: Path) -> None:
    """Delete what an interrupted writer left, except complete files of matrices, as only these are slow to write."""
    for path in root.rglob("*"):
        if path.is_file() and not _MATRIX_FILE.fullmatch(path.relative_to(root).as_posix()):
            path.unlink()


def _target_exists(target: Path) -> StoreExistsError:
    return StoreExistsError(
        f"store: {str(target)!r} exists already. Pass overwrite=True to replace it once the new store is complete, "
        "or choose another path. Nothing was written."
    )


def _is_replaceable(target: Path) -> bool:
    """Whether a path is a Zarr store, intact or damaged, or an empty folder."""
    return target.is_dir() and ((target / "zarr.json").exists() or not any(target.iterdir()))


def _is_interruption(error: BaseException | None) -> bool:
    """Whether the cause of an error may be temporary."""
    if error is None or isinstance(error, LazypertError):
        return isinstance(error, DiskFullError | MachineError)
    if isinstance(error, OSError):
        return error.errno in _TRANSIENT
    lost_worker = type(error).__module__.partition(".")[0] == "distributed"
    return lost_worker or isinstance(error, KeyboardInterrupt | SystemExit | MemoryError)


def _sync_tree(root: Path) -> None:
    """Sync all files and folders, because the rename implies that they are on disk."""
    for path in sorted(root.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            sync(path)
    sync(root)
