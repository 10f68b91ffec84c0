"""What a conversion will write where: decided, and checked, before the first value is read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.memory import format_bytes
from lazypert._internal.names import unique_names
from lazypert._internal.validation import require, require_choice, require_integer
from lazypert.conversion.reorder import READ_STEP
from lazypert.errors import ConfigError, DiskFullError, SourceFormatError, near_matches, no_such_column
from lazypert.screen.genes import JOINS, GeneAlignment, align_genes
from lazypert.screen.groups import Groups
from lazypert.screen.labels import factorise, unite
from lazypert.screen.roles import ROLE_OF_AXIS
from lazypert.store.format import COLUMN_SHARD, FORMAT_VERSION, MATRIX_SHARD

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray

    from lazypert._internal.memory import Budget
    from lazypert.converter import ScreenReader
    from lazypert.screen.roles import Roles


DATASET = "dataset"


RAW = "raw/X"


_GIVEN_ROLES = ("pert_col", "cell_type_col", "batch_col")


_FIRST_FILE_X = "layers/X"


# A map task holds its block as read, sorted, and narrowed: four times the block's bytes at most.
# Smaller blocks mean more spills, and every shard reads a piece of each; larger ones only take memory.
_BLOCKS_HELD, _BLOCK_BYTES, _LEAST_BLOCK = 4, 64 * 1024**2, 1024**2


_SHARD_HELD = MATRIX_SHARD * 20  # a reduce task: 8-byte column numbers and values, and a part of them again


_CELL_HELD = 64  # while cells are grouped and sorted: codes, keys, and two permutations


_SPILLED, _STORED = 2, 0.5  # bytes a value takes at the least, in spills and in the store


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a caller of `convert` decides about the result; a different choice is a different store."""

    roles: Roles
    layer: str | None
    order: str
    seed: int
    join: str

    def __post_init__(self) -> None:
        require_choice("order", self.order, ("grouped", "source"))
        require_choice("join", self.join, JOINS)
        given: dict[str, Any] = {**self.roles.to_json()}
        for role, name in given.items():
            require(name is None or isinstance(name, str), role, name, "text or None")
        require_integer("seed", self.seed)


@dataclass
class Plan:
    """What will be written where."""

    readers: list[ScreenReader]
    options: Options
    budget: Budget
    names: list[str]
    matrices: dict[str, str]
    obsm: list[str]
    genes: pd.DataFrame
    new_cols: list[NDArray[np.int32] | None]
    groups: Groups
    source_row: NDArray[np.integer]
    warnings: list[str] = field(default_factory=list)

    @property
    def n_obs(self) -> int:
        """Cells of all files."""
        return sum(reader.n_obs for reader in self.readers)

    @property
    def columns(self) -> dict[str, str]:
        """Every obs column of the files, and its name in the store, where `DATASET` is the file."""
        names = list(dict.fromkeys(name for reader in self.readers for name in reader.obs_columns))
        if len(self.readers) == 1 or DATASET not in names:
            return {name: name for name in names}
        moved = f"{DATASET}_in_file"
        while moved in names:
            moved += "_"
        return {name: moved if name == DATASET else name for name in names}

    @property
    def stored_roles(self) -> Roles:
        """Roles by the names that the columns have in the store."""
        roles, named = self.options.roles, self.columns
        renamed = {role: named[getattr(roles, role)] for role in _GIVEN_ROLES if getattr(roles, role) is not None}
        return replace(roles, **renamed)

    @property
    def is_grouped(self) -> bool:
        """Whether cells are sorted at all: without any role there is nothing to sort by."""
        return self.options.order == "grouped" and self.options.roles.has_columns

    @property
    def first_rows(self) -> list[int]:
        """Number of each file's first cell among all cells."""
        return np.cumsum([0, *(reader.n_obs for reader in self.readers)])[:-1].tolist()

    def tasks(self, origin: str) -> tuple[int, int, int]:
        """How the map tasks of a matrix keep within the budget.

        Returns
        -------
        Tasks at once, bytes of a block, and bytes that all tasks together hold at the most.

        Raises
        ------
        ConfigError
            When a single task does not fit.
        """
        scratch = max((r.scratch_bytes(origin) for r in self.readers), default=0)
        workers = self.budget.workers
        while True:
            block = min(_BLOCK_BYTES, (self.budget.limit // workers - scratch) // _BLOCKS_HELD)
            if block >= _LEAST_BLOCK:
                break
            if workers == 1:
                need = scratch + _BLOCKS_HELD * _LEAST_BLOCK
                raise ConfigError(
                    f"memory_limit: got {format_bytes(self.budget.limit)}, expected at least {format_bytes(need)}, "
                    f"because {origin} is stored in pieces of up to {format_bytes(scratch)} that can only be read "
                    "whole. Nothing was written."
                )
            workers -= 1
        return workers, block, workers * max(_BLOCKS_HELD * block + scratch, _SHARD_HELD)

    @property
    def piece(self) -> int:
        """Cells of a column that are held at once: text takes about 100 bytes a cell, some of it twice."""
        return max(1, self.budget.limit // 800 // COLUMN_SHARD) * COLUMN_SHARD

    def projected_memory(self) -> int:
        """Bytes that the conversion will hold at the most, over what the imports take."""
        cells = _CELL_HELD * self.n_obs
        return cells + max([self.tasks(origin)[2] for origin in self.matrices.values()], default=0)

    def check_disk(self, folder: Path, n_free: int) -> None:
        """Refuse what certainly won't fit.

        Raises
        ------
        DiskFullError
            When even the least that the spills and the store will take is more than there is.
        """
        sizes = [sum(r.nnz(origin) or 0 for r in self.readers) for origin in self.matrices.values()]
        need = int(sum(sizes) * _STORED + max(sizes, default=0) * _SPILLED)
        if need > n_free:
            raise DiskFullError(
                f"{str(folder)!r} has {format_bytes(n_free)} free, and the conversion needs at least "
                f"{format_bytes(need)}: the store, and beside it the largest matrix once more until it is sorted. "
                "Nothing was written. Make room, or choose a target on another disk."
            )

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change whenever what is read, or how, changes."""
        said = {
            "lazypert": version("lazypert"),
            "format": FORMAT_VERSION,
            "sources": [[str(reader.path.resolve()), *stamp(reader.path)] for reader in self.readers],
            "roles": self.options.roles.to_json(),
            "options": [self.options.layer, self.options.order, self.options.seed, self.options.join],
            "blocks": [self.tasks(origin)[1] for origin in self.matrices.values()],
        }
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:12]


def stamp(path: Path) -> tuple[int, int]:
    """Bytes and latest time of change (ns) of a file, or of all files of a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    stats = [file.stat() for file in files]
    return sum(stat.st_size for stat in stats), max((stat.st_mtime_ns for stat in stats), default=0)


def make_plan(readers: list[ScreenReader], options: Options, budget: Budget) -> Plan:
    """Plan the conversion of some files into one store.

    Raises
    ------
    ColumnNotFoundError, LabelNotFoundError
        When a column, a layer or the control label does not occur.
    SourceFormatError
        When a file is not what it should be.
    """
    names = dataset_names(readers)
    warnings = [f"{r.path.name}: {what}" for r in readers for what in r.not_carried]
    frames = [reader.var() for reader in readers]
    aligned = align_genes(frames, names, options.join)
    notes = _left_out(frames, readers, aligned) + _var_notes(frames, readers)
    matrices, more = _matrices(readers, options.layer)
    obsm, lost = _embeddings(readers)
    codes, labels = _role_codes(readers, options.roles, names)
    groups = Groups.from_codes(codes, labels, options.roles, sum(r.n_obs for r in readers))
    _ = groups.control_code  # an unknown control label stops here
    small = np.dtype("i4" if groups.n_obs < 2**31 else "i8")
    source_row: NDArray[np.integer] = np.arange(groups.n_obs, dtype=small)
    if options.order == "grouped" and options.roles.has_columns:
        order = groups.shuffled(options.seed).row_order
        assert order is not None
        source_row = order.astype(small, copy=False)
        groups = replace(groups, row_order=None)
    if groups.n_unlabelled:
        notes.append(f"{groups.n_unlabelled} cells have no cell type or no perturbation: they are in no group")
    return Plan(
        readers=readers,
        options=options,
        budget=budget,
        names=names,
        matrices=matrices,
        obsm=obsm,
        genes=aligned.var,
        new_cols=[None if aligned.is_same else new_col for new_col in aligned.new_col],
        groups=groups,
        source_row=source_row,
        warnings=[*dict.fromkeys(warnings + notes + more + lost)],
    )


def dataset_names(readers: list[ScreenReader]) -> list[str]:
    """One name per file, from its stem; repeated ones are numbered."""
    return list(unique_names(reader.path.name.split(".")[0] for reader in readers))


def _role_codes(
    readers: list[ScreenReader], roles: Roles, names: list[str]
) -> tuple[list[NDArray[np.int32] | None], list[NDArray[np.str_]]]:
    codes: list[NDArray[np.int32] | None] = []
    labels: list[NDArray[np.str_]] = []
    for axis, column in roles.columns().items():
        code, found = None, np.empty(0, dtype=np.str_)
        if column is not None and axis != "dataset":
            code, found = _role_column(readers, column, ROLE_OF_AXIS[axis])
        elif column is not None:
            found = np.array(sorted(names), dtype=np.str_)
            number = np.searchsorted(found, names)
            code = np.repeat(number.astype(np.int32), [reader.n_obs for reader in readers])
        codes.append(code)
        labels.append(found)
    return codes, labels


def _role_column(readers: list[ScreenReader], column: str, role: str) -> tuple[NDArray[np.int32], NDArray[np.str_]]:
    for reader in readers:
        if column not in reader.obs_columns:
            why = next((f"{line}. " for line in reader.not_carried if line.startswith(f"obs/{column}: ")), "")
            raise no_such_column(
                role, column, "an obs column", reader.obs_columns, of=reader.path, hint=f"{why}No store was made."
            )
    pieces = [
        factorise(reader.obs_column(column, start, min(reader.n_obs, start + READ_STEP)))
        for reader in readers
        for start in range(0, max(1, reader.n_obs), READ_STEP)
    ]
    return unite(pieces)


def _left_out(frames: list[pd.DataFrame], readers: list[ScreenReader], aligned: GeneAlignment) -> list[str]:
    return [
        f"{reader.path.name}: {lost} of {len(frame)} genes are not in every file and were left out"
        for reader, frame, new_col in zip(readers, frames, aligned.new_col, strict=True)
        if (lost := int((new_col < 0).sum()))
    ]


def _matrices(readers: list[ScreenReader], layer: str | None) -> tuple[dict[str, str], list[str]]:
    """Matrices of the store, and the one of the source that each is read from."""
    common = [name for name in readers[0].matrices if all(name in r.matrices for r in readers)]
    notes = [
        f"{r.path.name}: {name} is not in every file and was left out"
        for r in readers
        for name in r.matrices
        if name not in common
    ]
    x = "X" if layer is None else f"layers/{layer}"
    for reader in readers:
        if x not in reader.matrices:
            raise _no_matrix(reader, layer)
    if layer is not None and x != _FIRST_FILE_X and {"X", _FIRST_FILE_X} <= set(common):
        raise SourceFormatError(
            f"layer={layer!r} becomes X, and the file's X would become {_FIRST_FILE_X!r}, but "
            f"{str(readers[0].path)!r} has a layer of that name. Rename the layer 'X' in the file. No store was made."
        )
    _check_names(readers, [name for name in common if name != "X"])
    matrices = {"X": x} | {name: name for name in common if name not in ("X", x)}
    for name in [name for name in matrices if name.startswith("obsm/")]:
        if len({reader.matrices[name] for reader in readers}) > 1:
            del matrices[name]
            notes.append(f"{name}: its width differs between the files, left out")
    if RAW in matrices and len(readers) > 1:
        first = readers[0].raw_var().index
        if not all(reader.raw_var().index.equals(first) for reader in readers[1:]):
            del matrices[RAW]
            notes.append("raw: its genes differ between the files, left out")
    if layer is not None and "X" in common:
        matrices[_FIRST_FILE_X] = "X"
    return matrices, notes


def _embeddings(readers: list[ScreenReader]) -> tuple[list[str], list[str]]:
    """Names of the dense embeddings of the store, and notes of those that are left out."""
    every = list(dict.fromkeys(name for reader in readers for name in reader.obsm))
    common = [name for name in every if len({reader.obsm.get(name) for reader in readers}) == 1]
    _check_names(readers, [f"obsm/{name}" for name in common])
    return common, [
        f"obsm/{name}: not in every file with the same width, left out" for name in every if name not in common
    ]


def _check_names(readers: list[ScreenReader], names: list[str]) -> None:
    for name in names:
        kind, _, rest = name.partition("/")
        if rest in ("", ".", "..", "zarr.json") or "/" in rest:
            raise SourceFormatError(
                f"{str(readers[0].path)!r} has {name!r}, and {rest!r} cannot be the name of a Zarr array. "
                f"Rename it in {kind}. No store was made."
            )


def _var_notes(frames: list[pd.DataFrame], readers: list[ScreenReader]) -> list[str]:
    """What var tables of later files say and the store's does not."""
    notes = []
    for frame, reader in zip(frames[1:], readers[1:], strict=True):
        for column in frame.columns:
            if column not in frames[0].columns:
                notes.append(f"{reader.path.name}: var column {column!r} is not in the first file and was left out")
            elif frame.index.equals(frames[0].index) and not frame[column].equals(frames[0][column]):
                notes.append(f"{reader.path.name}: var column {column!r} differs from the first file's, which is kept")
    return notes


def _no_matrix(reader: ScreenReader, layer: str | None) -> Exception:
    known = [name.removeprefix("layers/") for name in reader.matrices if name.startswith("layers/")]
    if layer is not None:
        return no_such_column("layer", layer, "a layer", known, of=reader.path, hint="No store was made.")
    if RAW in reader.matrices and not known:
        return SourceFormatError(
            f"{str(reader.path)!r} has no X, only raw. Write that as X and convert it: "
            "adata.raw.to_adata().write_h5ad(new_path). No store was made."
        )
    return SourceFormatError(
        f"{str(reader.path)!r} has no X. Name a layer to use instead (layer=...). "
        f"{near_matches('counts', known)} No store was made."
    )
