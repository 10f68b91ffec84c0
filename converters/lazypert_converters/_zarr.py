"""Zarr stores as trees: folders and zip files, Zarr formats 2 and 3."""

from __future__ import annotations

import os
import warnings
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert.converter import as_remote
from lazypert_converters._links import check_links, check_members
from lazypert_converters._tree import Array, Group, Tree, join, kind_of, native

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

ROOT_FILES = ("zarr.json", ".zgroup")
_BLOSC_HEAD = 16  # bytes, of which the last four are the size of the file
_CONCURRENT_CHUNKS = 10  # chunks that zarr fetches and decodes at the same time by default


def is_zarr(path: Path) -> bool:
    """Whether a folder or a zip file has a Zarr group at its root."""
    if (remote := as_remote(path)) is not None:
        return remote.is_dir()  # it has such a file
    if path.is_dir():
        return any((path / name).is_file() for name in ROOT_FILES)
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return bool({*ROOT_FILES} & {*archive.namelist()})
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


def check_source(path: Path) -> None:
    """Refuse a local folder whose links lead out of it, or a zip file whose members do.

    Raises
    ------
    SourceFormatError
        If one does.
    """
    if as_remote(path) is not None:
        return
    if path.is_dir():
        check_links(path)
    else:
        with zipfile.ZipFile(path) as archive:
            check_members(path, archive.namelist())


@dataclass(frozen=True)
class ZarrTree(Tree):
    """A Zarr store on disk."""

    path: Path
    format: str

    @contextmanager
    def root(self) -> Iterator[ZarrGroup]:
        """Open the store, without consolidated metadata, which may be out of date."""
        import zarr
        from zarr.storage import LocalStore, ZipStore

        try:
            store: Any
            if (remote := as_remote(self.path)) is not None:
                store = remote.zarr_store()
            else:
                store = ZipStore(self.path, mode="r") if self.path.is_file() else LocalStore(self.path, read_only=True)
            group = zarr.open_group(store, mode="r", use_consolidated=False)
        except Exception as error:  # types differ between versions of zarr
            raise self.unreadable("a Zarr group", error) from error
        try:
            with _open_keys(self.path) as keys:
                yield ZarrGroup(self, "", group, keys)
        finally:
            store.close()


class _Keys:
    """Keys of the files in a store: looked up in the folder, or in the table of contents of the zip file."""

    def __init__(self, folder: Path | None, names: frozenset[str]) -> None:
        self._folder, self._names = folder, names

    def __contains__(self, key: str) -> bool:
        return key in self._names if self._folder is None else (self._folder / key).is_file()

    def is_cut_short(self, key: str) -> bool:
        """Whether a local file, compressed by Blosc, is shorter than it says; zip files have checksums."""
        if self._folder is None or key not in self:
            return False
        with (self._folder / key).open("rb") as file:
            head = file.read(_BLOSC_HEAD)
            return len(head) < _BLOSC_HEAD or int.from_bytes(head[12:16], "little") > file.seek(0, os.SEEK_END)


@contextmanager
def _open_keys(path: Path) -> Iterator[_Keys]:
    if (remote := as_remote(path)) is not None:
        yield _Keys(None, remote.keys())
    elif path.is_dir():
        yield _Keys(path, frozenset())
    else:
        with zipfile.ZipFile(path) as archive:
            yield _Keys(None, frozenset(archive.namelist()))


class ZarrGroup(Group):
    """A group of a Zarr store."""

    def __init__(self, tree: Tree, where: str, node: Any, keys: _Keys) -> None:
        self.tree, self.where, self.node, self._keys = tree, where, node, keys

    def attributes(self) -> dict[str, Any]:
        """All attributes."""
        with self.reading():
            return dict(self.node.attrs)

    def names(self) -> list[str]:
        """Names of the children in alphabetical order, without files that do not belong to the store."""
        with self.reading(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return sorted(self.node.keys())

    def child(self, name: str) -> Array | Group:
        """The array or group at a path."""
        import zarr

        where = join(self.where, name)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # dtypes that Zarr has not specified yet
                node = self.node[name]
        except KeyError as error:
            raise self.tree.fault(where, "is missing", "an array or a group") from error
        except Exception as error:  # damaged metadata and unknown codecs raise many types
            raise self.tree.fault(where, f"cannot be opened ({error})", "metadata that zarr can read") from error
        if isinstance(node, zarr.Group):
            return ZarrGroup(self.tree, where, node, self._keys)
        return ZarrArray(self.tree, where, node, self._keys)

    def check_complete(self) -> None:
        """Raise unless every array of the store has all of its files.

        Only for stores whose writer writes every chunk: others may omit chunks that are all zeros.
        """
        for name in self.names():
            node = self.child(name)
            if isinstance(node, ZarrGroup):
                node.check_complete()
            elif isinstance(node, ZarrArray) and (key := next(node.absent_keys(), None)) is not None:
                raise node.fault(
                    f"lacks its file {key!r}",
                    "all of its files",
                    "Zarr would show zeros in its place. Copy the store again.",
                )


class ZarrArray(Array):
    """An array of a Zarr store.

    A chunk without a file reads as zeros. Since writers may omit such chunks on purpose, a lost file of a dense
    matrix or of an obs column cannot be distinguished from zeros.
    """

    def __init__(self, tree: Tree, where: str, node: Any, keys: _Keys) -> None:
        self.tree, self.where, self.node, self._keys = tree, where, node, keys
        with self.reading():
            self.shape, self.dtype, self.chunks = node.shape, np.dtype(node.dtype), node.chunks
            self.kind = "text" if self.dtype.kind == "O" else kind_of(self.dtype)
            self._file_shape = node.shards or node.chunks
            compressors: tuple[Any, ...] = () if node.shards else node.compressors
            self._is_blosc = bool(compressors) and "blosc" in type(compressors[-1]).__name__.lower()
        if 0 in self._file_shape and 0 not in self.shape:
            raise self.fault(f"has chunks of shape {self._file_shape}", "chunks of at least one element")

    def attributes(self) -> dict[str, Any]:
        """All attributes."""
        with self.reading():
            return dict(self.node.attrs)

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows `start` to `stop` of the array."""
        with self.reading():
            self._check_files(slice(start, stop))
            values = np.asarray(self.node[...] if self.shape == () else self.node[start:stop])
            return self._as_text(values) if self.kind == "text" else native(values)

    def tile(self, rows: slice, cols: slice) -> NDArray[Any]:
        """A rectangle of a two-dimensional array."""
        with self.reading():
            self._check_files(rows, cols)
            return native(np.asarray(self.node[rows, cols]))

    def read_field(self, name: str, start: int, stop: int | None) -> NDArray[Any]:
        """Rows `start` to `stop` of one field of a structured array."""
        with self.reading():
            self._check_files(slice(start, stop))
            values = np.asarray(self.node[start:stop])[name]
            return self._as_text(values) if kind_of(values.dtype) == "text" else native(values)

    def _check_files(self, *slices: slice) -> None:
        """Refuse chunks that are cut short: Blosc would read beyond their end, and give whatever is in memory there."""
        if not self._is_blosc or 0 in self.shape:
            return
        spans = [one.indices(n) for one, n in zip(slices, self.shape, strict=False)]
        spans += [(0, n, 1) for n in self.shape[len(spans) :]]
        grid = [range(a // size, -(-b // size)) for (a, b, _), size in zip(spans, self._file_shape, strict=True)]
        for key in map(self._key, product(*grid)):
            if self._keys.is_cut_short(key):
                raise self.fault(f"has the file {key!r}, which is cut short", "whole files", "Copy the store again.")

    def _as_text(self, values: NDArray[Any]) -> NDArray[Any]:
        if values.dtype.kind == "S":
            values = np.char.decode(values, "utf-8")
        values = values.astype(object)
        if not all(isinstance(value, str) for value in values.ravel()):
            raise self.fault("holds objects that are not text", "text")
        return values

    def unwritten(self) -> list[tuple[int, int]]:
        """Element ranges whose file does not exist."""
        n, size = self.shape[0], self._file_shape[0]
        absent = [k for k in range(-(-n // size)) if self._key((k,)) not in self._keys]
        return [(k * size, min(n, (k + 1) * size)) for k in absent]

    def absent_keys(self) -> Iterator[str]:
        """Keys of the files that do not exist."""
        grid = [range(-(-n // size)) for n, size in zip(self.shape, self._file_shape, strict=True)]
        return (key for index in product(*grid) if (key := self._key(index)) not in self._keys)

    def _key(self, index: tuple[int, ...]) -> str:
        return join(self.where, self.node.metadata.encode_chunk_key(index))

    @property
    def scratch_bytes(self) -> int:
        """Bytes of the chunks that zarr decodes at the same time, compressed and decompressed."""
        chunk = int(np.prod(self.chunks or (1,))) * self.dtype.itemsize
        return 2 * chunk * min(_CONCURRENT_CHUNKS, self.node.nchunks)
