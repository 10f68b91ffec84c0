"""HDF5 files as trees, with the ways in which HDF5 shows values that are not in the file closed."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from lazypert.errors import SourceFormatError
from lazypert_converters._direct import read_part
from lazypert_converters._tree import Array, Group, Tree, join, kind_of, native

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lazypert_converters._tree import Node

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MOST_LINKED = 8  # files that a virtual dataset may go through before it is taken for a loop
_FILTERS = {  # registered with The HDF Group, for libraries that do not know the name of a filter they lack
    307: "bzip2", 32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32013: "zfp", 32015: "zstd",
    32017: "SZ", 32026: "blosc2",
}  # fmt: skip


def is_hdf5(path: Path) -> bool:
    """Whether the file begins as HDF5 does, perhaps behind a user block; says nothing about the rest of it."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        size, offset = path.stat().st_size, 0
        while offset + len(SIGNATURE) <= size:
            file.seek(offset)
            if file.read(len(SIGNATURE)) == SIGNATURE:
                return True
            offset = max(512, 2 * offset)
    return False


@dataclass(frozen=True)
class Hdf5Tree(Tree):
    """An HDF5 file."""

    path: Path
    kind: str

    @contextmanager
    def root(self) -> Iterator[Hdf5Group]:
        """Open the file."""
        try:
            file = h5py.File(self.path, "r")
        except (OSError, RuntimeError) as error:
            raise SourceFormatError(
                f"{str(self.path)!r} cannot be read as HDF5: {error}. The file is probably cut short or damaged; "
                "get it again. Nothing was written."
            ) from error
        with file:
            yield Hdf5Group(self, "", file)


def _attributes(node: Node, attrs: Any, file: Any) -> dict[str, Any]:
    with node.reading():
        found = {_name(name): attrs[name] for name in attrs}
        return {name: file[v].name if isinstance(v, h5py.Reference) else v for name, v in found.items()}


def _name(name: str | bytes) -> str:
    return name if isinstance(name, str) else name.decode("utf-8", "backslashreplace")


class Hdf5Group(Group):
    """A group of an HDF5 file."""

    def __init__(self, tree: Tree, where: str, node: h5py.Group) -> None:
        self.tree, self.where, self.node = tree, where, node

    def attributes(self) -> dict[str, Any]:
        """All attributes; object references as paths."""
        return _attributes(self, self.node.attrs, self.node.file)

    def names(self) -> list[str]:
        """Names of the children, those of broken links included."""
        with self.reading():
            return [_name(name) for name in self.node]

    def child(self, name: str) -> Array | Group:
        """The child at a path; a path from the root begins with a slash."""
        where = name.strip("/") if name.startswith("/") else join(self.where, name)
        try:
            node = self.node[name]
        except (KeyError, RuntimeError, OSError, ValueError) as error:
            raise self.tree.fault(where, *_why_absent(self.node, name, error)) from error
        if isinstance(node, h5py.Group):
            return Hdf5Group(self.tree, where, node)
        if isinstance(node, h5py.Dataset):
            return Hdf5Array(self.tree, where, node)
        raise self.tree.fault(where, "is a named datatype", "an array or a group")


def _why_absent(group: Any, name: str, error: Exception) -> tuple[str, str]:
    try:
        link = group.get(name, getlink=True)
    except (KeyError, RuntimeError, OSError, ValueError):
        return "is missing", "an array or a group"
    if link is None:
        return "is missing", "an array or a group"
    if isinstance(link, h5py.ExternalLink):
        return f"is a link to {link.path!r} in the file {link.filename!r}, which is not there", "that file beside it"
    if isinstance(link, h5py.SoftLink):
        what = "which goes round in a circle" if "too many" in str(error) else "which is not there"
        return f"is a link to {link.path!r}, {what}", "a link to something"
    return f"cannot be opened ({error})", "an intact object"


class Hdf5Array(Array):
    """A dataset whose values are in the file, or in files that are there."""

    def __init__(self, tree: Tree, where: str, node: h5py.Dataset) -> None:
        self.tree, self.where, self.node = tree, where, node
        self._lacking: str | None = None
        with self.reading():
            self.shape, self.dtype, self.chunks = node.shape or (), node.dtype, node.chunks
            self.kind = "other" if node.shape is None else kind_of(node.dtype)
            self._check_sources()
            self._lacking = _unavailable_filter(node)

    def attributes(self) -> dict[str, Any]:
        """All attributes; object references as paths."""
        return _attributes(self, self.node.attrs, self.node.file)

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows of the dataset."""
        with self.reading():
            if self.kind == "text":
                if self.shape == ():
                    return np.asarray(self.node.asstr("utf-8")[()], dtype=object)
                return np.asarray(self.node.asstr("utf-8")[start:stop], dtype=object)
            if self.shape == ():
                return native(np.asarray(self.node[()]))
            if len(self.shape) == 1:
                return native(read_part(self.node, slice(start, stop)))
            whole = (slice(None),) * (len(self.shape) - 1)
            return native(read_part(self.node, slice(start, stop), *whole))

    def tile(self, rows: slice, cols: slice) -> NDArray[Any]:
        """Part of a two-dimensional dataset."""
        with self.reading():
            return native(read_part(self.node, rows, cols))

    def read_field(self, name: str, start: int, stop: int | None) -> NDArray[Any]:
        """Rows of one field of a compound dataset."""
        with self.reading():
            values = self.node.fields(name)[start:stop]
            if kind_of(self.dtype[name]) != "text":
                return native(values)
            return np.array([_decode(value) for value in values], dtype=object)

    def missing(self) -> list[tuple[int, int]]:
        """Ranges that were never written."""
        n = self.shape[0]
        if n == 0 or self.node.is_virtual:
            return []
        with self.reading():
            if self.chunks is None:
                return [(0, n)] if self.node.id.get_storage_size() == 0 else []
            size, written = self.chunks[0], self.node.id.get_num_chunks()
            if written == -(-n // size):
                return []
            there = {self.node.id.get_chunk_info(k).chunk_offset[0] for k in range(written)}
            return [(i, min(n, i + size)) for i in range(0, n, size) if i not in there]

    @property
    def scratch_bytes(self) -> int:
        """Bytes of a chunk, twice: as it is in the file and as it is inflated."""
        return 0 if self.chunks is None else 2 * int(np.prod(self.chunks)) * self.dtype.itemsize

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Say which filter is not installed, if that is why values cannot be read."""
        try:
            with super().reading():
                yield
        except SourceFormatError as error:
            if self._lacking is None:
                raise
            raise self.fault(
                f"is compressed with the HDF5 filter {self._lacking}, which is not installed",
                "a filter that h5py can undo",
                "Install it: pip install hdf5plugin.",
            ) from error

    def _check_sources(self) -> None:
        """HDF5 shows zeros where values that should be in other files are not."""
        if self.node.external:
            names = ", ".join(repr(name) for name, _, _ in self.node.external[:3])
            raise self.fault(
                f"keeps its values outside, in {names}",
                "values inside the file",
                "HDF5 would show zeros where such a file is too short. Put them inside: h5repack -l CONTI in.h5ad "
                "out.h5ad.",
            )
        if self.node.is_virtual and (gone := _gone(self.node)) is not None:
            raise self.fault(
                f"is a view of another file, and {gone}",
                "all of its values",
                "HDF5 would show zeros in their place. Put that file back.",
            )


def _unavailable_filter(node: h5py.Dataset) -> str | None:
    """Name the first filter of a dataset that cannot be undone, after a look for more of them.

    Optional filters may have been left out when the values were written, so that reading may work all the same.
    """
    created = node.id.get_create_plist()
    for k in range(created.get_nfilters()):
        code, _, _, name = created.get_filter(k)
        if h5py.h5z.filter_avail(code):
            continue
        with suppress(ImportError):
            import hdf5plugin  # noqa: F401 - registers its filters
        if not h5py.h5z.filter_avail(code):
            return f"{_FILTERS.get(code) or name.decode('utf-8', 'replace') or 'unknown'!r} (number {code})"
    return None


def _decode(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _gone(node: h5py.Dataset, depth: int = 0) -> str | None:
    """Say what part of a virtual dataset has no values behind it; None when all has."""
    if depth > _MOST_LINKED:
        return "goes round in a circle"
    covered, folder = 0, Path(node.file.filename).parent
    for source in node.virtual_sources():
        if source.file_name == ".":
            gone = _gone_in(node.file, source, "the file itself", depth)
        else:
            places = (folder / source.file_name, Path(source.file_name))
            path = next((place for place in places if place.is_file()), None)
            if path is None:
                return f"{str(places[0])!r} is not there"
            with h5py.File(path, "r") as file:
                gone = _gone_in(file, source, repr(str(path)), depth)
        if gone is not None:
            return gone
        covered += source.vspace.get_select_npoints()
    return None if covered == node.size else f"{covered:,} of its {node.size:,} values are somewhere"


def _gone_in(file: h5py.File, source: Any, named: str, depth: int) -> str | None:
    found = file.get(source.dset_name)
    if not isinstance(found, h5py.Dataset):
        return f"{source.dset_name!r} is not in {named}"
    low, high = source.src_space.get_select_bounds()
    if len(high) != found.ndim or any(last >= n for last, n in zip(high, found.shape, strict=True)):
        return f"{source.dset_name!r} in {named} is of shape {found.shape}, less than what is shown ({low} to {high})"
    return _gone(found, depth + 1) if found.is_virtual else None
