"""Writing the obs and var tables and embeddings of a store, and lazypert's own tables."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lazypert._internal.texts import Texts
from lazypert.conversion.cell_pieces import cell_pieces
from lazypert.conversion.cell_stats import CellStats, CellStatsPlan
from lazypert.conversion.dataframe_writer import check_column_name, create_frame, write_column, write_frame
from lazypert.conversion.joined_files import embedding_reader, obs_column_reader
from lazypert.conversion.plan import DATASET
from lazypert.conversion.sorted_columns import write_sorted_rows
from lazypert.converter import column_names
from lazypert.screen.cell_table import code_dtype
from lazypert.store.format import COLUMN_SHARD, RAW, TABLES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from lazypert.conversion.arranged_cells import ArrangedCells
    from lazypert.conversion.array_files import ArrayFile, CellNumbers
    from lazypert.conversion.array_writer import ArrayWriter
    from lazypert.conversion.cell_pieces import Piece
    from lazypert.conversion.plan import ConversionPlan
    from lazypert.conversion.sorted_columns import ColumnJob
    from lazypert.conversion.store_writer import StoreWriter
    from lazypert.screen.groups import Groups


def write_obs(job: ColumnJob, plan: ConversionPlan, cells: ArrangedCells) -> None:
    """Write the obs table; with several files, add the column ``dataset``."""
    has_several_files, columns = len(plan.readers) > 1, plan.stored_names
    create_frame(job.writer, "obs", [*([DATASET] if has_several_files else []), *columns.values()])
    _write_names(job, "obs", plan, cells.names)
    for number, (name, stored_name) in enumerate(columns.items(), start=1):
        _write_column(job, "obs", stored_name, obs_column_reader(plan.readers, name), plan.n_obs, number)
    if has_several_files:
        read = _DatasetReader(plan.dataset_names, [*plan.first_rows, plan.n_obs])
        _write_column(job, "obs", DATASET, read, plan.n_obs, len(columns) + 1)


def _write_names(job: ColumnJob, frame: str, plan: ConversionPlan, saved: Sequence[ArrayFile] = ()) -> None:
    """Write the index of a table of cells, from files that hold the names of each piece if there are any."""
    read = obs_column_reader(plan.readers, None)

    def read_piece(piece: Piece) -> list[Any]:
        if saved:
            return [Texts(saved[piece.number].read("data"), saved[piece.number].read("bounds"))]
        return _in_steps(read, piece)

    job.write(f"{frame}/_index", np.empty(0, object), read_piece, 0)


def _write_column(
    job: ColumnJob, frame: str, name: str, read: Callable[[int, int], Any], n_obs: int, number: int
) -> None:
    check_column_name(frame, name)
    job.write(f"{frame}/{name}", read(0, min(1, n_obs)), lambda piece: _in_steps(read, piece), number)


def _in_steps(read: Callable[[int, int], Any], piece: Piece) -> list[Any]:
    """Read the values of a piece in several parts."""
    offset = piece.first - piece.start
    return [read(offset + start, offset + stop) for start, stop in piece.steps()]


@dataclass(frozen=True)
class _DatasetReader:
    """The column that names each cell's file; `bounds` are the first cells of the files, and the number of cells."""

    names: list[str]
    bounds: list[int]

    def __call__(self, start: int, stop: int) -> pd.Categorical:
        file = np.searchsorted(self.bounds, np.arange(start, stop), side="right") - 1
        return pd.Categorical.from_codes(file, self.names)


def write_var(writer: StoreWriter, plan: ConversionPlan) -> None:
    """Write the var table, and that of ``raw`` if there is one."""
    _write_frame(writer, "var", plan.genes)
    if RAW in plan.matrices:
        writer.group("raw", {"encoding-type": "raw", "encoding-version": "0.1.0"})
        writer.group("raw/varm", {"encoding-type": "dict", "encoding-version": "0.1.0"})
        _write_frame(writer, "raw/var", plan.readers[0].raw_var())


def _write_frame(writer: StoreWriter, path: str, frame: pd.DataFrame) -> None:
    index = frame.index.astype(str).to_numpy(dtype=object)
    write_frame(writer, path, index, [str(name) for name in frame.columns])
    for name in frame.columns:
        write_column(writer, path, str(name), frame[name].array)


def write_embeddings(writer: StoreWriter, job: ColumnJob, plan: ConversionPlan) -> None:
    """Write the dense obsm entries."""
    for name in plan.embeddings:
        width = plan.readers[0].obsm[name]
        dtypes = (reader.read_obsm(name, 0, 0).dtype for reader in plan.readers)
        dtype = np.result_type(*dtypes).newbyteorder("=")
        array = writer.dense(f"obsm/{name}", (plan.n_obs, width), dtype)
        fitting_rows = max(1, plan.budget.per_task // 16 // max(1, width * dtype.itemsize))
        step = max(1, fitting_rows // array.chunks[0]) * array.chunks[0]
        pieces = cell_pieces(plan.readers, min(fitting_rows, plan.piece_cells))
        read = _EmbeddingReader(embedding_reader(plan.readers, name, dtype))
        write_sorted_rows(job, array, read, pieces, step)


@dataclass(frozen=True)
class _EmbeddingReader:
    """Reads the rows of a piece."""

    read: Callable[[int, int], NDArray[Any]]

    def __call__(self, piece: Piece) -> list[Any]:
        return [self.read(piece.first, piece.first + len(piece))]


@dataclass(frozen=True)
class _ObsmFrame:
    """A table in the obsm of a file, read like its obs."""

    reader: Any
    name: str
    obs_columns: tuple[str, ...]

    @property
    def n_obs(self) -> int:
        return int(self.reader.n_obs)

    def obs_names(self, start: int, stop: int) -> Any:
        return self.reader.obs_names(start, stop)

    def obs_column(self, column: str, start: int, stop: int) -> Any:
        return self.reader.obsm_column(self.name, column, start, stop)


def write_obsm_frames(job: ColumnJob, plan: ConversionPlan) -> None:
    """Write the obsm entries that are tables."""
    for name, columns in plan.obsm_frames.items():
        frames: list[Any] = [_ObsmFrame(reader, name, columns) for reader in plan.readers]
        own_job = replace(job, folder=job.folder / f"obsm-{name}")
        create_frame(job.writer, f"obsm/{name}", [*columns])
        _write_names(own_job, f"obsm/{name}", plan)
        for number, column in enumerate(columns, start=1):
            read = obs_column_reader(frames, column)
            _write_column(own_job, f"obsm/{name}", column, read, plan.n_obs, number)


def write_column_names(writer: StoreWriter, plan: ConversionPlan) -> None:
    """Write the names of the columns of sparse obsm entries, such as guides, to ``uns/obsm_columns``."""
    found = {path: column_names(plan.readers[0], path) for path in plan.matrices if path.startswith("obsm/")}
    named = {path: names for path, names in found.items() if names is not None}
    if named:
        writer.group("uns/obsm_columns", {"encoding-type": "dict", "encoding-version": "0.1.0"})
    for path, names in named.items():
        writer.strings(f"uns/obsm_columns/{path.removeprefix('obsm/')}", names)


def write_tables(writer: StoreWriter, groups: Groups, cells: ArrangedCells) -> None:
    """Write lazypert's own tables: source rows, the run table, batches, name hashes, labels and conditions."""
    writer.group(TABLES, {})
    _write_numbers(writer, "source_row", cells.source_row)
    if cells.order is not None:
        _write_numbers(writer, "order", cells.order)
    write_groups(writer, groups, TABLES)
    if groups.roles.batch_col is not None:
        batch = groups.batch_counts.batch.astype(code_dtype(len(groups.labels["batch"])))
        _write_numbers(writer, "batch", cells.subgroup, batch)
    _write_numbers(writer, "name_hash", cells.name_hash)


def write_groups(writer: ArrayWriter, groups: Groups, base: str) -> None:
    """Write the tables of groups that do not grow with the number of cells, below a path."""
    counts = groups.batch_counts
    writer.array(f"{base}/runs/start", groups.start)
    writer.array(f"{base}/runs/stop", groups.stop)
    for axis, codes in groups.codes.items():
        writer.array(f"{base}/runs/{axis}", codes)
    if groups.roles.covariates:
        writer.array(f"{base}/runs/condition", groups.condition)
    for number, labels in enumerate(groups.conditions.labels.values()):
        writer.strings(f"{base}/conditions/{number}", labels.astype(object))
    for axis, labels in groups.labels.items():
        writer.strings(f"{base}/labels/{axis}", labels.astype(object))
    for name in ("run", "batch", "n_cells"):
        writer.array(f"{base}/subgroups/{name}", getattr(counts, name))


def _write_numbers(writer: StoreWriter, name: str, numbers: CellNumbers, value_of: NDArray[Any] | None = None) -> None:
    """Write a table of one number per cell; or with `value_of`, of the value that belongs to each number."""
    dtype = numbers.read(0, 0).dtype if value_of is None else value_of.dtype
    write = writer.column(f"{TABLES}/{name}", dtype, len(numbers))
    for start in range(0, len(numbers), COLUMN_SHARD):
        values = numbers.read(start, min(len(numbers), start + COLUMN_SHARD))
        write(start, values if value_of is None else value_of[values])


def write_cell_stats(
    writer: StoreWriter, groups: Groups, cells: ArrangedCells, stats_plan: CellStatsPlan, work: Path
) -> None:
    """Merge and write the cell statistics that the reduce tasks of X left in their folder `work`."""
    base, n_obs = f"{TABLES}/facts", len(cells.subgroup)
    writer.group(base, {"gene_col": stats_plan.gene_col})
    dtypes = {"total": "f8", "n_genes": "i4", "own_target": "f8"}
    writes = {name: writer.column(f"{base}/{name}", np.dtype(dtype), n_obs) for name, dtype in dtypes.items()}
    control_sums = np.zeros((stats_plan.n_control_subgroups, len(stats_plan.target)))
    control_row = np.full(stats_plan.n_control_subgroups, -1, np.int64)
    found = _CellStatsFiles(sorted(work.glob("rows-*.npz")), control_sums)
    for start in range(0, n_obs, COLUMN_SHARD):
        stop = min(n_obs, start + COLUMN_SHARD)
        subgroup = cells.subgroup.read(start, stop)
        stats_plan.find_control_rows(subgroup, start, control_row)
        # Rows without values are in no file.
        values: dict[str, NDArray[Any]] = {
            "total": np.zeros(stop - start),
            "n_genes": np.zeros(stop - start, np.int32),
            "own_target": np.where(stats_plan.target_of_run[groups.batch_counts.run[subgroup]] >= 0, 0.0, np.nan),
        }
        found.fill(start, stop, values)
        for name, write in writes.items():
            write(start, values[name])
    writer.array(f"{base}/target", stats_plan.target.astype("i4"))
    writer.array(f"{base}/control_sum", control_sums.ravel())
    writer.array(f"{base}/control_row", control_row)


class _CellStatsFiles:
    """The files of cell statistics, read one after another.

    Parameters
    ----------
    control_sums
        Sums of the targets over each subgroup of controls; those of every file that is read are added.
    """

    def __init__(self, paths: Sequence[Path], control_sums: NDArray[np.float64]) -> None:
        self._paths, self._control_sums = iter(paths), control_sums
        self._stats = self._next()

    def _next(self) -> CellStats | None:
        path = next(self._paths, None)
        if path is None:
            return None
        stats = CellStats.load(path)
        self._control_sums[stats.control_subgroups] += stats.control_sums
        return stats

    def fill(self, start: int, stop: int, values: dict[str, NDArray[Any]]) -> None:
        """Fill the values of rows ``start`` to ``stop``, which follow those of the last call."""
        while self._stats is not None and self._stats.first_row < stop:
            first, last = self._stats.first_row, self._stats.first_row + len(self._stats.total)
            begin, end = max(first, start), min(last, stop)
            for name, array in values.items():
                array[begin - start : end - start] = getattr(self._stats, name)[begin - first : end - first]
            if last > stop:
                return
            self._stats = self._next()
