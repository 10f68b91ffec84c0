"""What a store keeps besides cells and genes: ``uns``, ``varm`` and ``varp``, in AnnData's own encodings."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from lazypert._internal.machine import raise_machine_error
from lazypert._internal.memory import format_bytes
from lazypert._internal.paths import is_entry_name
from lazypert.converter import elements, read_element
from lazypert.store.format import RAW

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lazypert.conversion.store_writer import StoreWriter
    from lazypert.converter import ScreenReader

ALONG_GENES = ("varm", "varp")
"""Groups of AnnData whose elements have a row per gene."""

_SHARE_OF_LIMIT = 8  # an element may take this part of the memory limit, because it is held and encoded in memory


def choose_elements(
    readers: Sequence[ScreenReader], *, x: str, has_same_genes: bool, memory_limit: int
) -> tuple[list[str], list[str]]:
    """Choose the elements that a store keeps.

    Each is read, and encoded and decoded again by AnnData, on trial, so that nothing in a store can keep AnnData from
    reading it. One element at a time is in memory.

    Parameters
    ----------
    x
        Name in the files of the matrix that becomes X.
    has_same_genes
        Whether the store has the genes of every file, in the same order.
    memory_limit
        Bytes; larger elements are left out.

    Returns
    -------
    kept
        Their paths, such as ``"uns/leiden"``.
    not_copied
        One line for each of the others.

    Raises
    ------
    MachineError, MemoryError
        If an element cannot be read now.
    """
    kept: list[str] = []
    lines: list[str] = []
    paths = dict.fromkeys(path for reader in readers for path in elements(reader))
    for path in paths:
        owners = [reader for reader in readers if path in elements(reader)]
        reason = _why_not(path, owners, len(readers), x, has_same_genes, memory_limit)
        if reason is None:
            reason = _why_not_storable(path, readers)
        if reason is None:
            kept.append(path)
        else:
            of = f"{owners[0].path.name}: " if len(readers) == 1 else ""
            lines.append(f"{of}{path} was not copied: {reason}")
    return kept, lines


def write_elements(writer: StoreWriter, reader: ScreenReader, paths: Sequence[str]) -> None:
    """Write elements of a file to their usual places, one at a time."""
    for path in paths:
        shutil.rmtree(writer.root / path, ignore_errors=True)  # parts of it that an interrupted conversion left
        group, _, name = path.partition("/")
        _write(writer.open_group(group), name, read_element(reader, path))


def _why_not(
    path: str, owners: list[ScreenReader], n_files: int, x: str, has_same_genes: bool, memory_limit: int
) -> str | None:
    """Say why an element cannot be kept, judging by what is known before it is read."""
    if len(owners) < n_files:
        return "it is not in every file"
    if path.partition("/")[0] in ALONG_GENES and not has_same_genes:
        if x == RAW:
            return "raw becomes X, and its genes are not those of var"
        return "the genes of the files differ"
    size = max(elements(reader)[path] for reader in owners)
    if size * _SHARE_OF_LIMIT > memory_limit:
        return (
            f"it takes {format_bytes(size)}, more than an eighth of memory_limit={format_bytes(memory_limit)} (raise "
            "it to keep the element)"
        )
    return None


def _why_not_storable(path: str, readers: Sequence[ScreenReader]) -> str | None:
    """Read an element of every file and encode it on trial; say why it cannot be kept."""
    first: dict[str, bytes] | None = None
    for reader in readers:
        try:
            value = read_element(reader, path)
            if path.startswith("uns/") and (per_cell := _value_per_cell(value, reader.n_obs, path)) is not None:
                return f"{per_cell} has a value for each cell, which stores keep in obs and obsm only"
            if not _fits_genes(path, value, reader):
                return f"it does not have a row for each of the {reader.n_vars:,} genes, as AnnData requires"
            encoded = _encoded(path, value)
        except Exception as error:  # noqa: BLE001 - AnnData and its encoders raise many types; see `Node.reading`
            raise_machine_error(reader.path, error)
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            return f"AnnData cannot write it to Zarr, or read it ({reason})"
        if first is not None and encoded != first:
            return "it differs between the files"
        first = encoded
    return None


def _fits_genes(path: str, value: Any, reader: ScreenReader) -> bool:
    """Whether an entry of varm or varp has the shape, and a table the index, without which AnnData reads no store."""
    kind = path.partition("/")[0]
    if kind not in ALONG_GENES:
        return True
    n_axes = 1 + (kind == "varp")
    if getattr(value, "shape", ())[:n_axes] != (reader.n_vars,) * n_axes:
        return False
    return not isinstance(value, pd.DataFrame) or bool(value.index.equals(reader.var().index))


def _value_per_cell(value: Any, n_obs: int, path: str) -> str | None:
    """Path of an array in uns that has a row per cell, or of one number per cell; None if there is none.

    Such are the graphs of neighbours in old files, which AnnData moves to obsp when it reads them.
    """
    if isinstance(value, Mapping):
        found = (_value_per_cell(item, n_obs, f"{path}/{name}") for name, item in value.items())
        return next((inner for inner in found if inner is not None), None)
    shape: Any = getattr(value, "shape", ())
    is_matrix = len(shape) > 1
    is_numeric = len(shape) == 1 and getattr(getattr(value, "dtype", None), "kind", "") in "biufc"
    return path if (is_matrix or is_numeric) and shape[0] == n_obs else None


def _encoded(path: str, value: Any) -> dict[str, bytes]:
    """Files that AnnData writes for a value, after reading them again."""
    import anndata
    import zarr
    from zarr.storage import MemoryStore

    store: dict[str, Any] = {}
    parent, _, name = path.partition("/")
    group = zarr.open_group(MemoryStore(store), mode="w", zarr_format=3).require_group(parent)
    _write(group, name, value)
    for part in {part for key in store for part in key.split("/")[:-1]}:
        if not is_entry_name(part):
            raise ValueError(f"{part[:40]!r} cannot be the name of a folder of a store")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):  # about code, not about the element
            warnings.simplefilter("ignore", kind)
        anndata.io.read_elem(group[name])
    return {key: buffer.to_bytes() for key, buffer in store.items()}


def _write(group: Any, name: str, value: Any) -> None:
    import anndata
    import zarr

    every_chunk = zarr.config.set({"array.write_empty_chunks": True})  # a missing one is then a lost one
    with warnings.catch_warnings(), every_chunk, anndata.settings.override(allow_write_nullable_strings=True):
        warnings.simplefilter("ignore")  # of record arrays, and of defaults of later versions
        anndata.io.write_elem(group, name, value)
