"""The small objects that tables consist of: those that are used together are read at once from object storage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lazypert.store.format import TABLES

if TYPE_CHECKING:
    import zarr

_LARGEST = 1 << 20  # bytes of a decoded array; of a string, 16 are counted
_GROUPS = tuple(f"{TABLES}/{name}" for name in ("runs/", "labels/", "conditions/", "subgroups/", "batch", "name_hash"))


def annotation_objects(root: zarr.Group) -> list[str]:
    """Keys of the small objects that hold genes and categories, which every Dataset shows."""

    def is_annotation(path: str) -> bool:
        return path.startswith(("var/", "raw/var/")) or (path.startswith("obs/") and path.endswith("/categories"))

    return [f"{path}/c/0" for path in _small_arrays(root) if is_annotation(path)]


def group_objects(root: zarr.Group) -> list[str]:
    """Keys of the small objects that hold the groups and the cells of each."""
    return [f"{path}/c/0" for path in _small_arrays(root) if path.startswith(_GROUPS)]


def _small_arrays(root: zarr.Group) -> list[str]:
    """Paths of the arrays that are one small object each, by the consolidated metadata."""
    consolidated = root.metadata.consolidated_metadata
    if consolidated is None:
        return []
    nodes = consolidated.flattened_metadata.items()
    return sorted(path for path, node in nodes if hasattr(node, "shape") and _is_small(node))


def _is_small(array: Any) -> bool:
    dtype = array.dtype.to_native_dtype() if hasattr(array.dtype, "to_native_dtype") else array.dtype
    if len(array.shape) != 1 or not array.shape[0]:
        return False
    n_bytes = array.shape[0] * (16 if dtype.kind in "OT" else dtype.itemsize)
    return bool(n_bytes <= _LARGEST and array.shape[0] <= array.chunk_grid.chunk_shape[0])
