"""HDF5 files as trees. Refuses datasets for which HDF5 would silently show values that are not in the file."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import h5py
import numpy as np

from lazypert.converter import as_remote, raise_machine_error
from lazypert.errors import SourceFormatError
from lazypert_converters._direct import RANGE_BYTES, RANGES_AT_ONCE, read_slices
from lazypert_converters._links import ADVICE, file_number, may_lead_to
from lazypert_converters._tree import Array, Group, Tree, join, kind_of, native

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from lazypert_converters._tree import Node

T = TypeVar("T")

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MAX_DEPTH = 8  # of virtual datasets that refer to one another, before they are taken for a cycle
_FILTERS = {  # registered with The HDF Group; libraries may not know the name of a filter that is not installed
    307: "bzip2", 32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32013: "zfp", 32015: "zstd",
    32017: "SZ", 32026: "blosc2",
}  # fmt: skip
_READ_ONCE = re.compile(r"(?!(obs|var|uns)/).*/(data|indices)|X|layers/[^/]+|raw/X|raw\.X")
"""Paths of values of matrices: they are not kept on the local disk, as each block is read once."""


def is_hdf5(path: Path) -> bool:
    """Whether the file has the HDF5 signature, at its start or after a user block; nothing else is checked."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        size, offset = file.seek(0, os.SEEK_END), 0
        while offset + len(SIGNATURE) <= size:
            file.seek(offset)
            if file.read(len(SIGNATURE)) == SIGNATURE:
                return True
            offset = max(512, 2 * offset)
    return False


def open_hdf5(path: Path) -> Any:
    """Open a local file, or a remote one, which is read by ranges."""
    return h5py.File(path if as_remote(path) is None else path.open("rb"), "r")


def ask(path: Path, question: Callable[[h5py.File], T], *, if_damaged: T) -> T:
    """Return what a function says of an open HDF5 file; `if_damaged` if HDF5 cannot read what it looks at.

    Raises
    ------
    MachineError
        If the machine, and not the file, is the reason.
    """
    try:
        with open_hdf5(path) as file:
            return question(file)
    except Exception as error:  # noqa: BLE001 - damage raises types that differ between parts of h5py
        raise_machine_error(path, error)
        return if_damaged


@dataclass(frozen=True)
class Hdf5Tree(Tree):
    """An HDF5 file."""

    path: Path
    format: str

    @contextmanager
    def root(self) -> Iterator[Hdf5Group]:
        """Open the file."""
        try:
            file = open_hdf5(self.path)
        except Exception as error:  # damage raises types that differ between parts of h5py
            raise self.unreadable("HDF5", error) from error
        with file:
            yield Hdf5Group(self, "", file)


def _attributes(node: Node, attrs: Any, file: Any) -> dict[str, Any]:
    with node.reading():
        values = {_decoded(name): attrs[name] for name in attrs}
        return {name: file[v].name if isinstance(v, h5py.Reference) else v for name, v in values.items()}


def _decoded(name: str | bytes) -> str:
    return name if isinstance(name, str) else name.decode("utf-8", "backslashreplace")


class Hdf5Group(Group):
    """A group of an HDF5 file."""

    def __init__(self, tree: Tree, where: str, node: h5py.Group) -> None:
        self.tree, self.where, self.node = tree, where, node

    def attributes(self) -> dict[str, Any]:
        """All attributes, with object references as paths."""
        return _attributes(self, self.node.attrs, self.node.file)

    def names(self) -> list[str]:
        """Names of the children, including broken links."""
        with self.reading():
            return [_decoded(name) for name in self.node]

    def child(self, name: str) -> Array | Group:
        """The array or group at a path; a leading slash means a path from the root."""
        where = name.strip("/") if name.startswith("/") else join(self.where, name)
        try:
            node = self.node[name]
        except Exception as error:  # a damaged object raises types that differ between its kinds
            raise_machine_error(self.tree.path, error)
            raise self.tree.fault(where, *_why_absent(self.node, name, error)) from error
        self._check_file(where, node)
        if isinstance(node, h5py.Group):
            return Hdf5Group(self.tree, where, node)
        if isinstance(node, h5py.Dataset):
            return Hdf5Array(self.tree, where, node)
        raise self.tree.fault(where, "is a named datatype", "an array or a group")

    def _check_file(self, where: str, node: Any) -> None:
        """Refuse an object of another file, to which a link leads, unless that is in the source's folder."""
        with self.reading():
            is_other = file_number(node) != file_number(self.node)
        if is_other and not may_lead_to(self.tree.path, Path(node.file.filename)):
            raise self.tree.fault(
                where,
                f"is a link into the file {node.file.filename!r}",
                "a link into this file, or one beside it",
                f"{ADVICE}If you trust it, copy the values into the file: h5copy.",
            )


def _why_absent(group: Any, name: str, error: Exception) -> tuple[str, str]:
    """Explain a failed lookup, as (got, expected)."""
    link = None
    with suppress(Exception):  # a damaged link raises types that differ between its kinds
        link = group.get(name, getlink=True)
    if link is None:
        return "is missing", "an array or a group"
    if isinstance(link, h5py.ExternalLink):
        return f"is a link to {link.path!r} in the file {link.filename!r}, which does not exist", "that file next to it"
    if isinstance(link, h5py.SoftLink):
        reason = "which leads back to itself" if "too many" in str(error) else "which does not exist"
        return f"is a link to {link.path!r}, {reason}", "a link to an array or a group"
    return f"cannot be opened ({error})", "an intact object"


class Hdf5Array(Array):
    """A dataset, after checking that the file (or another existing file) holds its values."""

    def __init__(self, tree: Tree, where: str, node: h5py.Dataset) -> None:
        self.tree, self.where, self.node = tree, where, node
        self._missing_filter: str | None = None
        with self.reading():
            self.shape, self.dtype, self.chunks = node.shape or (), node.dtype, node.chunks
            self.kind = "other" if node.shape is None else kind_of(node.dtype)
            self._check_sources()
            self._missing_filter = _missing_filter(node)

    def attributes(self) -> dict[str, Any]:
        """All attributes, with object references as paths."""
        return _attributes(self, self.node.attrs, self.node.file)

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows `start` to `stop` of the dataset."""
        with self.reading():
            if self.kind == "text":
                rows = () if self.shape == () else slice(start, stop)
                return np.asarray(self.node.asstr("utf-8")[rows], dtype=object)
            if self.shape == ():
                return native(np.asarray(self.node[()]))
            other_axes = (slice(None),) * (len(self.shape) - 1)
            return native(read_slices(self.node, slice(start, stop), *other_axes, fetch=self._fetch))

    def tile(self, rows: slice, cols: slice) -> NDArray[Any]:
        """A rectangle of a two-dimensional dataset."""
        with self.reading():
            return native(read_slices(self.node, rows, cols, fetch=self._fetch))

    @property
    def _fetch(self) -> Any:
        """Return a function that reads bytes of a remote file; None if it is local."""
        remote = as_remote(self.tree.path)
        if remote is None:
            return None
        return partial(remote.read, is_kept=not _READ_ONCE.fullmatch(self.where))

    def read_field(self, name: str, start: int, stop: int | None) -> NDArray[Any]:
        """Rows `start` to `stop` of one field of a compound dataset."""
        with self.reading():
            values = self.node.fields(name)[start:stop]
            if kind_of(self.dtype[name]) != "text":
                return native(values)
            return np.array([v.decode("utf-8") if isinstance(v, bytes) else str(v) for v in values], dtype=object)

    def unwritten(self) -> list[tuple[int, int]]:
        """Element ranges of chunks that were never written."""
        n = self.shape[0]
        with self.reading():
            if n == 0 or self.node.is_virtual:
                return []
            if self.chunks is None:
                return [(0, n)] if self.node.id.get_storage_size() == 0 else []
            size, n_written = self.chunks[0], self.node.id.get_num_chunks()
            if n_written == -(-n // size):
                return []
            written = {self.node.id.get_chunk_info(k).chunk_offset[0] for k in range(n_written)}
            return [(i, min(n, i + size)) for i in range(0, n, size) if i not in written]

    @property
    def scratch_bytes(self) -> int:
        """Bytes of a chunk, twice: compressed and decompressed."""
        chunks = 0 if self.chunks is None else 2 * int(np.prod(self.chunks)) * self.dtype.itemsize
        return chunks + (RANGE_BYTES * RANGES_AT_ONCE if as_remote(self.tree.path) else 0)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Name the missing filter if that is why values cannot be read."""
        try:
            with super().reading():
                yield
        except SourceFormatError as error:
            if self._missing_filter is None:
                raise
            raise self.fault(
                f"is compressed with the HDF5 filter {self._missing_filter}, which is not installed",
                "a filter that h5py can decode",
                "Install it: pip install hdf5plugin.",
            ) from error

    def _check_sources(self) -> None:
        """Refuse datasets whose values are in other files that are missing: HDF5 shows zeros in their place."""
        if self.node.external:
            names = ", ".join(repr(name) for name, _, _ in self.node.external[:3])
            raise self.fault(
                f"keeps its values in external files, {names}",
                "values inside the file",
                "If such a file were too short, HDF5 would show zeros. Copy the values into the file: "
                "h5repack -l CONTI in.h5ad out.h5ad.",
            )
        if self.node.is_virtual and (gap := _virtual_gap(self.tree.path, self.node)) is not None:
            raise self.fault(
                f"is a virtual dataset, and {gap}",
                "a source for every value, in this file or in its folder",
                "Put the source file there: HDF5 would show zeros without one, or follow a link anywhere.",
            )


def _missing_filter(node: h5py.Dataset) -> str | None:
    """Name the first filter of a dataset that is not available even after importing hdf5plugin.

    This alone is not an error: an optional filter may have been skipped when the values were written.
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


def _virtual_gap(origin: Path, node: h5py.Dataset, depth: int = 0) -> str | None:
    """Describe the first part of a virtual dataset that has no source, or one elsewhere; None if every value has one.

    Parameters
    ----------
    origin
        The file that is converted, in whose folder all sources are.
    """
    if depth > _MAX_DEPTH:
        return "it refers back to itself"
    covered, folder = 0, Path(node.file.filename).parent
    for source in node.virtual_sources():
        if source.file_name == ".":
            gap = _source_gap(origin, node.file, source, "the same file", depth)
        else:
            candidates = (folder / source.file_name, Path(source.file_name))
            path = next((candidate for candidate in candidates if candidate.is_file()), None)
            if path is None:
                return f"its source {str(candidates[0])!r} does not exist"
            if not may_lead_to(origin, path):
                return f"its source {str(path)!r} is in another folder"
            with h5py.File(path, "r") as file:
                gap = _source_gap(origin, file, source, repr(str(path)), depth)
        if gap is not None:
            return gap
        covered += source.vspace.get_select_npoints()
    return None if covered == node.size else f"only {covered:,} of its {node.size:,} values have a source"


def _source_gap(origin: Path, file: h5py.File, source: Any, file_text: str, depth: int) -> str | None:
    dataset = file.get(source.dset_name)
    if not isinstance(dataset, h5py.Dataset):
        return f"its source {source.dset_name!r} is not a dataset of {file_text}"
    if dataset.external or file_number(dataset) != file_number(file):
        return f"its source {source.dset_name!r} in {file_text} refers to a further file"
    if source.src_space.get_select_type() == h5py.h5s.SEL_ALL:  # HDF5 does not keep its shape
        if dataset.size != (n_values := source.vspace.get_select_npoints()):
            return f"its source {source.dset_name!r} in {file_text} has {dataset.size:,} values, not {n_values:,}"
        return _virtual_gap(origin, dataset, depth + 1) if dataset.is_virtual else None
    low, high = source.src_space.get_select_bounds()
    if len(high) != dataset.ndim or any(last >= n for last, n in zip(high, dataset.shape, strict=True)):
        return (
            f"its source {source.dset_name!r} in {file_text} is of shape {dataset.shape}, which does not contain the "
            f"selection from {low} to {high}"
        )
    return _virtual_gap(origin, dataset, depth + 1) if dataset.is_virtual else None
