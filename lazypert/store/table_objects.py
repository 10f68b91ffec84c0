"""The small objects that tables consist of: read at once when a store in object storage is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lazypert.store.format import TABLES

if TYPE_CHECKING:
    import zarr

    from lazypert.store.remote_reader import RemoteReader

_LARGEST = 1 << 20  # bytes of a decoded array, or of 16 times as many strings
_TABLES = tuple(f"{TABLES}/{name}/" for name in ("runs", "labels", "conditions", "subgroups"))


def hold_tables(reader: RemoteReader, root: zarr.Group) -> None:
    """Read what nearly every use of a store needs, so that no use waits for one table after another."""
    reader.hold(table_objects(root))


def table_objects(root: zarr.Group) -> list[str]:
    """Keys of the small objects that hold genes, categories and the run table, by the consolidated metadata."""
    consolidated = root.metadata.consolidated_metadata
    if consolidated is None:
        return []
    arrays = {path: node for path, node in consolidated.flattened_metadata.items() if hasattr(node, "shape")}
    return [f"{path}/c/0" for path, array in sorted(arrays.items()) if _is_table(path) and _is_small(array)]


def _is_table(path: str) -> bool:
    is_category = path.startswith("obs/") and path.endswith("/categories")
    return is_category or path.startswith(("var/", "raw/var/", *_TABLES))


def _is_small(array: Any) -> bool:
    dtype = array.dtype.to_native_dtype() if hasattr(array.dtype, "to_native_dtype") else array.dtype
    if len(array.shape) != 1 or not array.shape[0]:
        return False
    n_bytes = array.shape[0] * (16 if dtype.hasobject else dtype.itemsize)
    return bool(n_bytes <= _LARGEST and array.shape[0] <= array.chunk_grid.chunk_shape[0])
