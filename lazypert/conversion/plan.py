"""Conversion plan: what is written where, and the memory and disk space it takes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from lazypert._internal.memory import format_bytes
from lazypert._internal.validation import require, require_choice
from lazypert.conversion.cell_pieces import READ_STEP
from lazypert.converter import is_in_memory
from lazypert.errors import ConfigError, DiskFullError
from lazypert.screen.roles import ROLE_OF_AXIS
from lazypert.store.format import FORMAT_VERSION, MATRIX_SHARD, Compression
from lazypert.store.remote_file import RemoteFile

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray

    from lazypert._internal.memory import Budget
    from lazypert.converter import ScreenReader
    from lazypert.screen.roles import Roles

Order = Literal["grouped", "source"]
"""Row order of a store."""

Join = Literal["inner", "outer"]
"""Which genes of several files a store keeps."""

DATASET = "dataset"
"""obs column that names each cell's file, if there are several."""

MEMORY_SLACK = 256 * 1024**2
"""Bytes over its limit that a conversion may take."""

# Roles whose columns come from the files.
_FILE_ROLES = ("pert_col", "cell_type_col", "batch_col")

# A map task holds its block as read, sorted, and narrowed: at most four times the block's bytes. Smaller blocks
# mean more spills, and every reduce task reads from each of them; larger blocks only take more memory.
MAX_BLOCK_BYTES, MIN_BLOCK_BYTES = 64 * 1024**2, 1024**2
_COPIES_OF_BLOCK = 4

# A reduce task holds 8-byte column numbers and values, and some of them twice.
_REDUCE_TASK_BYTES = MATRIX_SHARD * 20

# Cells whose names and labels a task holds at once, and cells that one sorts, at most. More of them are faster by
# little: each task reads a part of what every other one wrote.
MAX_PIECE_CELLS, MAX_BUCKET_CELLS = 1_048_576, 2_097_152
_MIN_CELLS_AT_ONCE = 65_536

# Per cell of a piece: its name as bytes, twice, and numbers; and per cell that is sorted.
_BYTES_PER_PIECE_CELL, _BYTES_PER_SORTED_CELL = 256, 128

# A few names and labels are Python objects while they are read.
_BYTES_PER_OBJECT = 120

# Per cell and table that is joined onto obs: the row of the table.
_BYTES_PER_JOINED_CELL = 4

# The least that a cell takes on disk: its number and hash while cells are sorted, and the hash in the store.
_MIN_CELL_BYTES = 20

# The least that a value takes on disk, in a spill and in the store.
_MIN_SPILL_BYTES, _MIN_STORE_BYTES = 2, 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionOptions:
    """The options of `convert` that determine the content of a store."""

    roles: Roles
    layer: str | None
    order: Order
    join: Join
    control_col: str | None = None
    compression: Compression = "fast"

    def __post_init__(self) -> None:
        require_choice("order", self.order, Order)
        require_choice("join", self.join, Join)
        require_choice("compression", self.compression, Compression)
        columns: dict[str, Any] = self.roles.columns()
        for axis, name in columns.items():
            role = ROLE_OF_AXIS[axis]
            require(name is None or isinstance(name, str), role, name, "text or None")
        if self.control_col is not None:
            require(isinstance(self.control_col, str), "control_col", self.control_col, "text or None")
            if self.roles.controls or self.roles.pert_col is None:
                raise ConfigError(
                    f"control_col: got {self.control_col!r} with control_pert={self.roles.control_pert!r} and pert_col="
                    f"{self.roles.pert_col!r}, expected it in place of control_pert and together with pert_col."
                )


class MapTaskSizes(NamedTuple):
    """How the tasks of a matrix keep within the memory limit.

    Attributes
    ----------
    workers
        Map tasks that run at once.
    block_bytes
        Largest source block in bytes.
    peak_bytes
        Bytes that all map tasks, or all reduce tasks, hold together.
    """

    workers: int
    block_bytes: int
    peak_bytes: int


@dataclass(repr=False)
class ConversionPlan:
    """What a conversion writes where.

    Attributes
    ----------
    dataset_names
        One name per file.
    matrices
        Name in the store, and name in the files, of each matrix; X comes first.
    embeddings
        Names of the dense obsm entries.
    genes
        The store's var table.
    new_cols
        For each file, the gene in the store of each of its genes, -1 for dropped ones; None if all are kept as is.
    not_copied
        What the files hold and the store does not, one line each.
    notes
        What else to know of the store, one line each.
    elements
        Paths of the entries of uns, varm and varp that the store keeps.
    obsm_frames
        Columns of each obsm entry that is a table.
    joined_digest
        Digest of the tables that were joined onto obs; empty without any.
    n_joined
        Number of these tables for each cell.
    joined_notes
        Notes about these tables.
    """

    readers: list[ScreenReader]
    options: ConversionOptions
    budget: Budget
    dataset_names: list[str]
    matrices: dict[str, str]
    embeddings: list[str]
    genes: pd.DataFrame
    new_cols: list[NDArray[np.int32] | None]
    not_copied: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    elements: list[str] = field(default_factory=list)
    obsm_frames: dict[str, tuple[str, ...]] = field(default_factory=dict)
    joined_digest: str = ""
    n_joined: int = 0
    joined_notes: list[str] = field(default_factory=list)

    @property
    def n_obs(self) -> int:
        """Number of cells of all files."""
        return sum(reader.n_obs for reader in self.readers)

    @property
    def stored_names(self) -> dict[str, str]:
        """Name in the store of every obs column; with several files, a column named `DATASET` is renamed."""
        names = list(dict.fromkeys(name for reader in self.readers for name in reader.obs_columns))
        if len(self.readers) == 1 or DATASET not in names:
            return {name: name for name in names}
        new_name = f"{DATASET}_in_file"
        while new_name in names:
            new_name += "_"
        return {name: new_name if name == DATASET else name for name in names}

    @property
    def stored_roles(self) -> Roles:
        """Roles with the columns' names in the store."""
        roles, names = self.options.roles, self.stored_names
        renamed: dict[str, Any] = {
            role: names[getattr(roles, role)] for role in _FILE_ROLES if getattr(roles, role) is not None
        }
        return replace(roles, **renamed, covariates=tuple(names[name] for name in roles.covariates))

    @property
    def is_grouped(self) -> bool:
        """Whether rows are sorted by group; without roles there is nothing to sort by."""
        return self.options.order == "grouped" and self.options.roles.has_columns

    @property
    def first_rows(self) -> list[int]:
        """Number of each file's first cell among the cells of all files."""
        return np.cumsum([0, *(reader.n_obs for reader in self.readers)])[:-1].tolist()

    @property
    def row_dtype(self) -> np.dtype[Any]:
        """Dtype of numbers of cells."""
        return np.dtype("i4" if self.n_obs < 2**31 else "i8")

    @property
    def piece_cells(self) -> int:
        """Cells whose names and labels a task reads."""
        return min(MAX_PIECE_CELLS, max(_MIN_CELLS_AT_ONCE, self.budget.per_task // (2 * _BYTES_PER_PIECE_CELL)))

    @property
    def bucket_cells(self) -> int:
        """Cells that a task sorts."""
        return min(MAX_BUCKET_CELLS, max(_MIN_CELLS_AT_ONCE, self.budget.per_task // (2 * _BYTES_PER_SORTED_CELL)))

    def map_task_sizes(self, source_name: str) -> MapTaskSizes:
        """Divide the memory limit among the map tasks of a matrix.

        Raises
        ------
        ConfigError
            If the limit does not allow a single task.
        """
        scratch = max((reader.scratch_bytes(source_name) for reader in self.readers), default=0)
        workers = self.budget.workers
        while True:
            block = min(MAX_BLOCK_BYTES, (self.budget.limit // workers - scratch) // _COPIES_OF_BLOCK)
            if block >= MIN_BLOCK_BYTES:
                break
            if workers == 1:
                least = scratch + _COPIES_OF_BLOCK * MIN_BLOCK_BYTES
                raise ConfigError(
                    f"memory_limit: got {format_bytes(self.budget.limit)}, expected at least {format_bytes(least)}, "
                    f"because {source_name} is stored in chunks of up to {format_bytes(scratch)} that cannot be read "
                    "in parts. Raise the limit. Nothing was written."
                )
            workers -= 1
        return MapTaskSizes(workers, block, workers * max(_COPIES_OF_BLOCK * block + scratch, _REDUCE_TASK_BYTES))

    def check_memory(self) -> None:
        """Check that the conversion fits into the memory limit.

        Raises
        ------
        ConfigError
            If it does not.
        """
        peaks = [self.map_task_sizes(source_name).peak_bytes for source_name in self.matrices.values()]
        piece = _BYTES_PER_PIECE_CELL * self.piece_cells + _BYTES_PER_OBJECT * READ_STEP
        peaks.append(self.budget.workers * max(piece, _BYTES_PER_SORTED_CELL * self.bucket_cells))
        needed = _BYTES_PER_JOINED_CELL * self.n_joined * self.n_obs + max(peaks)
        if needed > self.budget.limit + MEMORY_SLACK:
            least = format_bytes(needed - MEMORY_SLACK)
            raise ConfigError(
                f"memory_limit: got {format_bytes(self.budget.limit)}, expected at least {least} to convert "
                f"{self.n_obs:,} cells with {self.n_joined} tables in obs. Raise the limit. Nothing was written."
            )

    def check_disk(self, folder: Path, n_free: int, n_held: int = 0, *, holds_store: bool = True) -> None:
        """Check that the disk is not certainly too small.

        Parameters
        ----------
        folder
            A folder on the disk, for the message.
        n_free
            Free bytes.
        n_held
            Bytes of an unfinished conversion to the same target, which are reused or deleted.
        holds_store
            Whether the disk holds the store too, or only the spills.

        Raises
        ------
        DiskFullError
            If the spills and the store need more than that, by the lowest estimate.
        """
        sizes = [sum(reader.nnz(name) or 0 for reader in self.readers) for name in self.matrices.values()]
        store_bytes = sum(sizes) * _MIN_STORE_BYTES if holds_store else 0
        needed = int(store_bytes + max(sizes, default=0) * _MIN_SPILL_BYTES)
        needed, n_free = max(needed, _MIN_CELL_BYTES * self.n_obs), n_free + n_held
        if needed > n_free:
            what, where = ("the store and ", "a target") if holds_store else ("", "a work_dir")
            raise DiskFullError(
                f"{str(folder)!r} has {format_bytes(n_free)} free, and the conversion needs at least "
                f"{format_bytes(needed)}, for {what}the spills of its largest matrix. "
                f"Free some space, or choose {where} on another disk. Nothing was written."
            )

    def fingerprint(self) -> str | None:
        """Return twelve hexadecimal digits that change whenever the sources or the options change.

        None if a source is an object in memory, of which a later process cannot tell whether it is the same.
        """
        if any(map(is_in_memory, self.readers)):
            return None
        identity = {
            "lazypert": version("lazypert"),
            "format": FORMAT_VERSION,
            "sources": [_identity(reader.path) for reader in self.readers],
            "roles": self.options.roles.to_json(),
            "options": [
                self.options.layer,
                self.options.order,
                self.options.join,
                self.options.control_col,
                self.options.compression,
            ],
            "obs": self.joined_digest,
            "cells": [self.piece_cells, self.bucket_cells],
            "blocks": [self.map_task_sizes(source_name).block_bytes for source_name in self.matrices.values()],
        }
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]


def _identity(path: Path | RemoteFile) -> list[Any]:
    """What tells a source from others, and from what was there before."""
    return list(path.version) if isinstance(path, RemoteFile) else [str(path.resolve()), *source_stamp(path)]


def source_stamp(path: Path | RemoteFile) -> tuple[int, int]:
    """Size in bytes and latest modification time (ns) of a file, or of all files in a folder."""
    if isinstance(path, RemoteFile):
        return path.stamp()
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    stats = [file.stat() for file in files]
    return sum(stat.st_size for stat in stats), max((stat.st_mtime_ns for stat in stats), default=0)
