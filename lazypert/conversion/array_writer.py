"""Writing groups and arrays into a folder that becomes a store: templates, columns, embeddings, metadata."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from lazypert._internal.files import crc32_of, write_atomic
from lazypert._internal.texts import Texts
from lazypert.conversion.store_files import FolderFiles
from lazypert.store.format import CODEC, MARKER, Codec, Grid, astype_codec, delta_codec
from lazypert.store.manifest import MANIFEST, MANIFEST_FILES, Entry, root_digest
from lazypert.store.shard_encoding import encode_shard, encode_text_shard
from lazypert_zarr import AsType, Delta

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from lazypert.conversion.store_files import StoreFiles

    SliceWriter = Callable[[int, Any], None]

DENSE_CHUNK_BYTES = 4_194_304
"""Bytes of a chunk of an embedding, at most."""


@dataclass(frozen=True, slots=True)
class Template:
    """An array with metadata but no shards yet: enough for any task to write one of them."""

    files: StoreFiles
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
        return self.files.write(f"{self.path}/c/{shard}", encode_shard(values, self.grid, self.codec))


@dataclass(frozen=True, slots=True)
class TextTemplate:
    """An array of texts with metadata but no shards yet."""

    files: StoreFiles
    path: str
    grid: Grid

    def write_shard(self, shard: int, texts: Texts) -> Entry:
        """Write one complete shard from its texts, the elements of ``grid.span(shard)``."""
        start, stop = self.grid.span(shard)
        assert len(texts) == stop - start, (self.path, shard, len(texts))
        return self.files.write(f"{self.path}/c/{shard}", encode_text_shard(texts, self.grid))


class ArrayWriter:
    """Writes groups and arrays, and the metadata that make a store of them.

    Parameters
    ----------
    root
        A folder, which need not exist. It is not a store before `write_root`.
    files
        Where shards go; None means into the folder. What libraries write into the folder by themselves, such as
        metadata and text, follows with `collect`.
    """

    def __init__(self, root: Path, files: StoreFiles | None = None) -> None:
        self.root, self.files = root, files or FolderFiles(root)
        self._entries: dict[str, Entry] = {}
        self._zarr = zarr.open_group(root, mode="a", zarr_format=3, use_consolidated=False)

    def group(self, path: str, attrs: dict[str, Any]) -> None:
        """Create a group with its attributes."""
        self._zarr.require_group(path).update_attributes(attrs)

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
        self._create_sharded(path, dtype, grid, attrs, codec=codec, declared=declared, keep=keep)
        return Template(self.files, path, dtype, grid, codec)

    def text_template(
        self, path: str, grid: Grid, attrs: dict[str, Any] | None = None, *, keep: bool = False
    ) -> TextTemplate:
        """Create an array of variable-length strings without values; with `keep`, existing shards stay."""
        attrs = {"encoding-type": "string-array", "encoding-version": "0.2.0"} | (attrs or {})
        self._create_sharded(path, "string", grid, attrs, keep=keep)
        return TextTemplate(self.files, path, grid)

    def _create_sharded(
        self, path: str, dtype: Any, grid: Grid, attrs: dict[str, Any] | None, *, keep: bool, **codecs: Any
    ) -> None:
        if keep:
            (self.root / path / "zarr.json").unlink(missing_ok=True)
        lengths = (grid.length,), (grid.chunk,), (grid.shard,)
        self._create(path, dtype, lengths, attrs, overwrite=not keep, **codecs)
        folder = self.root / path / "c"
        folder.mkdir(exist_ok=True)
        for file in folder.iterdir():
            if file.name not in map(str, range(grid.n_shards)):
                file.unlink()

    def add(self, entries: Iterable[Entry]) -> None:
        """Add files that tasks have written to the manifest."""
        self._entries.update((entry.key, entry) for entry in entries)

    def collect(self) -> None:
        """Send values that are still in the folder to where shards go, so that it stays small."""
        self.add(self.files.take(self.root, is_taken=lambda key: not key.endswith("zarr.json")))

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
        template: Any = (
            self.text_template(path, grid, attrs) if dtype == "string" else self.template(path, dtype, grid, attrs)
        )

        def write(start: int, values: Any) -> None:
            assert start % grid.shard == 0, (path, start)
            for first in range(start, start + len(values), grid.shard):
                shard_values = values[first - start : first - start + grid.shard]
                shard_values = Texts.of(np.asarray(shard_values, object)) if dtype == "string" else shard_values
                self.add([template.write_shard(first // grid.shard, shard_values)])

        return write

    def dense(self, path: str, shape: tuple[int, int], dtype: Any) -> Any:
        """Create a dense (cell, feature) array in chunks of rows.

        Returns
        -------
        The Zarr array. Assign a multiple of ``array.chunks[0]`` rows at a time.
        """
        rows = max(1, min(shape[0], DENSE_CHUNK_BYTES // max(1, shape[1] * np.dtype(dtype).itemsize)))
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
        blosc, filters = codec.blosc(), list[Any]()
        if declared is not None and declared != dtype:
            blosc["typesize"] = dtype.itemsize  # by default Zarr takes that of the declared dtype
            filters.append(AsType.from_dict(astype_codec(dtype, declared)))
        if codec.is_delta:
            filters.append(Delta.from_dict(delta_codec(dtype)))
        return self._zarr.create_array(
            path,
            **dict(zip(("shape", "chunks", "shards"), lengths, strict=True)),
            dtype=dtype if declared is None else declared,
            filters=filters or None,
            compressors=[BloscCodec(**blosc), Crc32cCodec()],
            fill_value="" if dtype == "string" else 0,
            attributes=attrs or {},
            # A missing shard must never read as zeros.
            config={"write_empty_chunks": True},
            overwrite=overwrite,
        )

    def entry(self, key: str) -> Entry:
        """Return the size and checksum of a file of the store, which is read unless a task has reported them."""
        if key in self._entries:
            return self._entries[key]
        size_and_crc = crc32_of(self.root / key)
        assert size_and_crc is not None, key
        return Entry(key, *size_and_crc)

    def write_manifest(self, entries: list[Entry]) -> None:
        """Write the arrays of the manifest, whose group exists."""
        self.strings(f"{MANIFEST}/key", np.array([entry.key for entry in entries], dtype=object))
        self.array(f"{MANIFEST}/size", np.array([entry.size for entry in entries], dtype="i8"))
        self.array(f"{MANIFEST}/crc32", np.array([entry.crc32 for entry in entries], dtype="u4"))

    def write_root(self, attrs: dict[str, Any], nodes: dict[str, Any]) -> None:
        """Write the root metadata, which also cover what the manifest cannot list: its own files and the root.

        Parameters
        ----------
        attrs
            Entries of the root attribute ``lazypert``, without digests of the root and the manifest's files.
        nodes
            Metadata of every other node by path, as `read_nodes` returns it.
        """
        file = self.root / "zarr.json"
        consolidated = {"kind": "inline", "must_understand": False, "metadata": dict(sorted(nodes.items(), key=_depth))}
        metadata = json.loads(file.read_bytes()) | {"consolidated_metadata": consolidated}
        files = {
            path.relative_to(self.root).as_posix() for path in (self.root / MANIFEST).rglob("*/*") if path.is_file()
        }
        files |= {
            key for key in self._entries if key.startswith(f"{MANIFEST}/") and key.count("/") > MANIFEST.count("/") + 1
        }
        entries = [self.entry(key) for key in sorted(files)]
        attrs = attrs | {MANIFEST_FILES: [[e.key, e.size, e.crc32] for e in entries]}
        metadata["attributes"] = {"encoding-type": "anndata", "encoding-version": "0.1.0", MARKER: attrs}
        attrs["root_digest"] = root_digest(metadata)
        write_atomic(file, [json.dumps(metadata, indent=1).encode()])


def read_nodes(root: Path, keys: Iterable[str]) -> dict[str, Any]:
    """Read the metadata of groups and arrays, in the form of Zarr's consolidated metadata.

    Parameters
    ----------
    keys
        Files of the store; only metadata files are read.
    """
    found: dict[str, Any] = {}
    for key in keys:
        path, _, name = key.rpartition("/")
        if path and name == "zarr.json":
            node = json.loads((root / key).read_bytes())
            if node["node_type"] == "group":
                node["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": {}}
            found[path] = node
    return found


def _depth(node: tuple[str, Any]) -> tuple[int, list[str]]:
    """Sort key of consolidated metadata: siblings are always together.

    Zarr writes them in an order that ignores case, which mixes the children of ``obs/Study`` with those of
    ``obs/study``, and up to version 3.1 it then reads back only the last of each.
    """
    parts = node[0].split("/")
    return len(parts), parts
