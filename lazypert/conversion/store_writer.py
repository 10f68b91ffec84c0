"""Writing a store: create, template, write shards, finalise. Until the last step there is no store."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import re
import shutil
import threading
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from lazypert._internal.files import crc32_of, swap, sync, write_atomic
from lazypert.conversion.staging import StagingDirectory
from lazypert.errors import DiskFullError, LazypertError, StoreExistsError
from lazypert.store.format import CODEC, FORMAT_VERSION, MARKER, Codec, Grid
from lazypert.store.manifest import MANIFEST, MANIFEST_FILES, Entry, manifest_digest, root_digest
from lazypert.store.shard_encoding import encode_shard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    PieceWriter = Callable[[int, Any], None]

_LOG = logging.getLogger("lazypert")
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
_MATRIX_FILE = re.compile(r".+/(data|indices|indptr)/(c/\d+|zarr\.json)")
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
_CONSOLIDATING = threading.Lock()  # warning filters belong to the whole process


@dataclass(frozen=True, slots=True)
class Template:
    """An array whose metadata are written and whose shards are not: enough to write any of them."""

    root: Path
    path: str
    dtype: np.dtype[Any]
    grid: Grid
    codec: Codec = CODEC

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
        size, crc = write_atomic(self.root / key, encode_shard(values, self.grid, self.codec))
        return Entry(key, size, crc)


class StoreWriter:
    """Builds a store beside its target and renames it into place when all is on disk.

    Use as a context manager. Leaving it before `finalise` removes what was written, unless the
    work has a fingerprint and was cut off from outside (Ctrl-C, a full disk, a lost worker): then
    it stays, and the next writer of the same fingerprint finds its shards.

    Parameters
    ----------
    target
        Folder of the store to be.
    overwrite
        Replace a store at the target, once the new one is complete.
    fingerprint
        See `lazypert.partial.StagingDirectory`.

    Raises
    ------
    StoreExistsError
        When `target` exists and `overwrite` is False, or is not a Zarr store, or when another
        process is writing it; raised before anything is written.
    """

    def __init__(self, target: str | Path, *, overwrite: bool = False, fingerprint: str | None = None) -> None:
        self.target = Path(target)
        self._overwrite = overwrite
        self.check(self.target, overwrite=overwrite)
        self._can_resume = fingerprint is not None
        self.partial = StagingDirectory(self.target, fingerprint)
        self.root = self.partial.store
        self._entries: dict[str, Entry] = {}
        if self.partial.is_resumed:
            _keep_matrices(self.root)
        self._zarr = zarr.open_group(self.root, mode="a", zarr_format=3)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        keep = self._can_resume and _is_interruption(error)
        if keep:
            _LOG.info("what is done so far is kept in %s: the same conversion goes on from it", self.partial.folder)
        self.partial.release(keep=keep)

    @staticmethod
    def check(target: Path, *, overwrite: bool) -> None:
        """Raise `StoreExistsError` when there is something at the target that may not be replaced."""
        if target.exists() and not overwrite:
            raise _exists(target)
        if target.exists() and not _is_replaceable(target):
            raise StoreExistsError(
                f"{str(target)!r} exists and is not a Zarr store: overwrite=True replaces stores only, so that "
                "a mistyped path deletes nothing else. Nothing was written; choose another target."
            )

    def group(self, path: str, attrs: dict[str, Any]) -> None:
        """Create a group with its attributes."""
        self._zarr.require_group(path).attrs.update(attrs)

    def template(
        self,
        path: str,
        dtype: Any,
        grid: Grid,
        attrs: dict[str, Any] | None = None,
        *,
        codec: Codec = CODEC,
        keep: bool = False,
    ) -> Template:
        """Create a one-dimensional array without values; `keep` leaves the shards that are there."""
        dtype = np.dtype(dtype).newbyteorder("=")  # what Zarr's metadata say of the bytes
        if keep:
            (self.root / path / "zarr.json").unlink(missing_ok=True)
        self._create(path, (grid.length,), dtype, (grid.chunk,), (grid.shard,), attrs, codec=codec, overwrite=not keep)
        folder = self.root / path / "c"
        folder.mkdir(exist_ok=True)
        for file in folder.iterdir():
            if file.name not in map(str, range(grid.n_shards)):
                file.unlink()
        return Template(self.root, path, dtype, grid, codec)

    def add(self, entries: Iterable[Entry]) -> None:
        """Note shards that tasks have written."""
        self._entries.update((entry.key, entry) for entry in entries)

    def array(self, path: str, values: NDArray[Any], attrs: dict[str, Any] | None = None) -> None:
        """Write a numeric one-dimensional array."""
        self.pieces(path, values.dtype, len(values), attrs)(0, values)

    def strings(self, path: str, values: Any, attrs: dict[str, Any] | None = None) -> None:
        """Write an array of variable-length strings (AnnData's ``string-array``)."""
        self.pieces(path, "string", len(values), attrs)(0, values)

    def pieces(self, path: str, dtype: Any, length: int, attrs: dict[str, Any] | None = None) -> PieceWriter:
        """Create a column that is written piece by piece.

        Parameters
        ----------
        dtype
            Of numbers, or ``"string"``.

        Returns
        -------
        A function of (start, values), where every `start` is a multiple of `COLUMN_SHARD`.
        """
        grid = Grid.column(length)
        if dtype == "string":
            attrs = {"encoding-type": "string-array", "encoding-version": "0.2.0"} | (attrs or {})
            array = self._create(path, (length,), "string", (grid.chunk,), (grid.shard,), attrs)
        else:
            template = self.template(path, dtype, grid, attrs)

        def write(start: int, values: Any) -> None:
            assert start % grid.shard == 0, (path, start)
            for first in range(start, start + len(values), grid.shard):
                part = values[first - start : first - start + grid.shard]
                if dtype == "string":
                    array[first : first + len(part)] = np.asarray(part, dtype=object)
                else:
                    self.add([template.write_shard(first // grid.shard, part)])

        return write

    def dense(self, path: str, shape: tuple[int, int], dtype: Any) -> Any:
        """Create a dense (cell, feature) array in row chunks; rows are assigned by whole chunks.

        Returns
        -------
        The Zarr array; ``array.chunks[0]`` is the number of rows to assign at once.
        """
        rows = max(1, min(shape[0], 4_194_304 // max(1, shape[1] * np.dtype(dtype).itemsize)))
        attrs = {"encoding-type": "array", "encoding-version": "0.2.0"}
        return self._create(path, shape, np.dtype(dtype), (rows, max(1, shape[1])), None, attrs)

    def _create(
        self,
        path: str,
        shape: Any,
        dtype: Any,
        chunks: Any,
        shards: Any,
        attrs: dict[str, Any] | None,
        *,
        codec: Codec = CODEC,
        overwrite: bool = True,
    ) -> Any:
        return self._zarr.create_array(
            path,
            shape=shape,
            dtype=dtype,
            chunks=chunks,
            shards=shards,
            filters=None,
            compressors=[BloscCodec(**asdict(codec)), Crc32cCodec()],
            fill_value="" if dtype == "string" else 0,
            attributes=attrs or {},
            # A shard that is not there must never look like one full of zeros.
            config={"write_empty_chunks": True},
            overwrite=overwrite,
        )

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
        with _CONSOLIDATING, warnings.catch_warnings():  # AnnData and Zarr both write and read it for version 3
            warnings.filterwarnings("ignore", message="Consolidated metadata", category=UserWarning)
            zarr.consolidate_metadata(self.root, zarr_format=3)
        self._seal({"format_version": FORMAT_VERSION, **attrs, "manifest_digest": manifest_digest(entries)})
        _sync_tree(self.root)
        self._rename()
        return self.target

    def _seal(self, ours: dict[str, Any]) -> None:
        """Write the root metadata, which make it a store: all of ours, and what the manifest cannot list.

        These are the manifest's own files, and the root itself.
        """
        file = self.root / "zarr.json"
        metadata = json.loads(file.read_bytes())
        files = sorted(path for path in (self.root / MANIFEST).rglob("*/*") if path.is_file())
        listed = [self.entry(path.relative_to(self.root).as_posix()) for path in files]
        ours = ours | {MANIFEST_FILES: [[e.key, e.size, e.crc32] for e in listed]}
        metadata["attributes"] = {"encoding-type": "anndata", "encoding-version": "0.1.0", MARKER: ours}
        ours["root_digest"] = root_digest(metadata)
        write_atomic(file, [json.dumps(metadata, indent=1).encode()])

    def _manifest(self) -> list[Entry]:
        entries = dict(self._entries)
        for file in sorted(self.root.rglob("*")):
            key = file.relative_to(self.root).as_posix()
            if file.is_file() and key != "zarr.json" and key not in entries:
                entries[key] = self.entry(key)
        return [entries[key] for key in sorted(entries)]

    def entry(self, key: str) -> Entry:
        """Size and checksum of a file of the store."""
        found = crc32_of(self.root / key)
        assert found is not None, key
        return Entry(key, *found)

    def _write_manifest(self, entries: list[Entry]) -> None:
        self.strings(f"{MANIFEST}/key", np.array([entry.key for entry in entries], dtype=object))
        self.array(f"{MANIFEST}/size", np.array([entry.size for entry in entries], dtype="i8"))
        self.array(f"{MANIFEST}/crc32", np.array([entry.crc32 for entry in entries], dtype="u4"))

    def _rename(self) -> None:
        """Put the store in its place; of two writers one wins, and a store that is replaced is never gone before."""
        if self._overwrite and self.target.exists():
            old = self.partial.name_for_old()
            self.root.rename(old)
            swap(old, self.target)
            sync(self.target.parent)
            shutil.rmtree(old, ignore_errors=True)
            if old.exists():
                _LOG.warning("the store that was replaced could not be deleted: %s", old)
            return
        try:
            self.root.rename(self.target)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            raise _exists(self.target) from error
        sync(self.target.parent)


def _keep_matrices(root: Path) -> None:
    """Remove all that a killed writer left but whole files of matrices: the rest is quickly written anew."""
    for path in root.rglob("*"):
        if path.is_file() and not _MATRIX_FILE.fullmatch(path.relative_to(root).as_posix()):
            path.unlink()


def _exists(target: Path) -> StoreExistsError:
    return StoreExistsError(
        f"{str(target)!r} exists already, and nothing was written. Pass overwrite=True to replace it "
        "once the new store is complete, or choose another target."
    )


def _is_replaceable(target: Path) -> bool:
    """Whether a folder is a Zarr store (perhaps a damaged one) or empty."""
    return target.is_dir() and ((target / "zarr.json").exists() or not any(target.iterdir()))


def _is_interruption(error: BaseException | None) -> bool:
    """Whether the work was stopped by something that may not stop it the next time."""
    if error is None or isinstance(error, LazypertError):
        return isinstance(error, DiskFullError)
    if isinstance(error, OSError):
        return error.errno in _PASSING
    lost_worker = type(error).__module__.partition(".")[0] == "distributed"
    return lost_worker or isinstance(error, KeyboardInterrupt | SystemExit | MemoryError)


def _sync_tree(root: Path) -> None:
    """Bytes must be on disk before the rename says that they are."""
    for path in sorted(root.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            sync(path)
    sync(root)
