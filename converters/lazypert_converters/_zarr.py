"""Zarr stores as trees: folders and zip files, of Zarr format 2 and 3."""

from __future__ import annotations

import warnings
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert.errors import SourceFormatError
from lazypert_converters._tree import Array, Group, Tree, join, kind_of, native

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

ROOTS = ("zarr.json", ".zgroup")
_AT_ONCE = 10  # chunks that zarr fetches and decodes at the same time by default


def is_zarr(path: Path) -> bool:
    """Whether a folder, or a zip file, has a Zarr group at its root."""
    if path.is_dir():
        return any((path / name).is_file() for name in ROOTS)
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return bool({*ROOTS} & {*archive.namelist()})
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


@dataclass(frozen=True)
class ZarrTree(Tree):
    """A Zarr store on disk."""

    path: Path
    kind: str

    @contextmanager
    def root(self) -> Iterator[ZarrGroup]:
        """Open the store; what consolidated metadata says is not asked, as it may be out of date."""
        import zarr
        from zarr.storage import LocalStore, ZipStore

        try:
            store: Any = ZipStore(self.path, mode="r") if self.path.is_file() else LocalStore(self.path, read_only=True)
            group = zarr.open_group(store, mode="r", use_consolidated=False)
        except Exception as error:  # the kinds differ from version to version
            raise SourceFormatError(
                f"{str(self.path)!r} cannot be read as a Zarr group: {error}. The store is probably incomplete or "
                "damaged; get it again. Nothing was written."
            ) from error
        try:
            with _files(self.path) as exists:
                yield ZarrGroup(self, "", group, exists)
        finally:
            store.close()


class _Exists:
    """Whether a store has a file: asked of the folder, or of the zip file's table of contents."""

    def __init__(self, folder: Path | None, names: frozenset[str]) -> None:
        self._folder, self._names = folder, names

    def __call__(self, key: str) -> bool:
        return key in self._names if self._folder is None else (self._folder / key).is_file()


@contextmanager
def _files(path: Path) -> Iterator[_Exists]:
    if path.is_dir():
        yield _Exists(path, frozenset())
    else:
        with zipfile.ZipFile(path) as archive:
            yield _Exists(None, frozenset(archive.namelist()))


class ZarrGroup(Group):
    """A group of a Zarr store."""

    def __init__(self, tree: Tree, where: str, node: Any, exists: _Exists) -> None:
        self.tree, self.where, self.node, self._exists = tree, where, node, exists

    def attributes(self) -> dict[str, Any]:
        """All attributes."""
        with self.reading():
            return dict(self.node.attrs)

    def names(self) -> list[str]:
        """Names of the children in alphabetical order; files that are no part of the store are none."""
        with self.reading(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return sorted(self.node.keys())

    def child(self, name: str) -> Array | Group:
        """The child at a path."""
        import zarr

        where = join(self.where, name)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of dtypes that Zarr has not specified yet
                node = self.node[name]
        except KeyError as error:
            raise self.tree.fault(where, "is missing", "an array or a group") from error
        except Exception as error:  # damaged metadata and unknown codecs raise many kinds
            raise self.tree.fault(where, f"cannot be opened ({error})", "metadata that zarr can read") from error
        if isinstance(node, zarr.Group):
            return ZarrGroup(self.tree, where, node, self._exists)
        return ZarrArray(self.tree, where, node, self._exists)

    def check_whole(self) -> None:
        """Raise unless every array of the store has all of its files.

        Only for stores whose writer leaves none out: others may omit chunks that are all zeros.
        """
        for name in self.names():
            node = self.child(name)
            if isinstance(node, ZarrGroup):
                node.check_whole()
            elif isinstance(node, ZarrArray) and (gone := next(node.absent(), None)) is not None:
                raise node.fault(
                    f"lacks its file {gone!r}", "all files", "Zarr would show zeros in its place. Copy the store again."
                )


class ZarrArray(Array):
    """An array of a Zarr store.

    A chunk whose file is missing reads as zeros. Writers may leave such chunks out on purpose, so that a
    lost file of a dense matrix or of an obs column cannot be told from zeros.
    """

    def __init__(self, tree: Tree, where: str, node: Any, exists: _Exists) -> None:
        self.tree, self.where, self.node, self._exists = tree, where, node, exists
        with self.reading():
            self.shape, self.dtype, self.chunks = node.shape, np.dtype(node.dtype), node.chunks
            self.kind = "text" if self.dtype.kind == "O" else kind_of(self.dtype)
            self._outer = node.shards or node.chunks

    def attributes(self) -> dict[str, Any]:
        """All attributes."""
        with self.reading():
            return dict(self.node.attrs)

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows of the array."""
        with self.reading():
            values = np.asarray(self.node[...] if self.shape == () else self.node[start:stop])
            return self._as_text(values) if self.kind == "text" else native(values)

    def tile(self, rows: slice, cols: slice) -> NDArray[Any]:
        """Part of a two-dimensional array."""
        with self.reading():
            return native(np.asarray(self.node[rows, cols]))

    def read_field(self, name: str, start: int, stop: int | None) -> NDArray[Any]:
        """Rows of one field of a structured array."""
        with self.reading():
            values = np.asarray(self.node[start:stop])[name]
            return self._as_text(values) if kind_of(values.dtype) == "text" else native(values)

    def _as_text(self, values: NDArray[Any]) -> NDArray[Any]:
        if values.dtype.kind == "S":
            values = np.char.decode(values, "utf-8")
        values = values.astype(object)
        if not all(isinstance(value, str) for value in values.ravel()):
            raise self.fault("holds objects that are not text", "text")
        return values

    def missing(self) -> list[tuple[int, int]]:
        """Ranges whose file is not there."""
        n, size = self.shape[0], self._outer[0]
        there = [self._exists(self._key((k,))) for k in range(-(-n // size))]
        return [(k * size, min(n, (k + 1) * size)) for k, found in enumerate(there) if not found]

    def absent(self) -> Iterator[str]:
        """Keys of the files that are not there."""
        grid = [range(-(-n // size)) for n, size in zip(self.shape, self._outer, strict=True)]
        return (key for place in product(*grid) if not self._exists(key := self._key(place)))

    def _key(self, place: tuple[int, ...]) -> str:
        return join(self.where, self.node.metadata.encode_chunk_key(place))

    @property
    def scratch_bytes(self) -> int:
        """Bytes of the chunks that zarr decodes at the same time, each twice."""
        chunk = int(np.prod(self.chunks or (1,))) * self.dtype.itemsize
        return 2 * chunk * min(_AT_ONCE, self.node.nchunks)
