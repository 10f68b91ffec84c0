"""Writing the obs and var tables and embeddings of a store, and lazypert's own tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lazypert.conversion.cell_stats import CellStats, CellStatsPlan
from lazypert.conversion.dataframe_writer import InMemoryColumn, write_column, write_frame
from lazypert.conversion.plan import DATASET
from lazypert.conversion.reordered_values import ReorderedValues, embedding_reader, obs_column_reader
from lazypert.converter import column_names
from lazypert.store.format import RAW, TABLES

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from lazypert.conversion.array_writer import ArrayWriter
    from lazypert.conversion.plan import ConversionPlan
    from lazypert.conversion.store_writer import StoreWriter
    from lazypert.screen.groups import Groups


def write_obs(writer: StoreWriter, plan: ConversionPlan, destination: NDArray[np.integer]) -> None:
    """Write the obs table; with several files, add the column ``dataset``."""
    has_several_files, columns = len(plan.readers) > 1, plan.stored_names

    def values(name: str | None) -> ReorderedValues:
        return ReorderedValues(obs_column_reader(plan.readers, name), destination, plan.column_step)

    write_frame(writer, "obs", values(None), [*([DATASET] if has_several_files else []), *columns.values()])
    for name, stored_name in columns.items():
        write_column(writer, "obs", stored_name, values(name))
    if has_several_files:
        codes = np.repeat(np.arange(len(plan.dataset_names)), [reader.n_obs for reader in plan.readers])
        dataset = pd.Categorical.from_codes(codes[plan.source_row], plan.dataset_names)
        write_column(writer, "obs", DATASET, InMemoryColumn(dataset))


def write_var(writer: StoreWriter, plan: ConversionPlan) -> None:
    """Write the var table, and that of ``raw`` if there is one."""
    _write_frame(writer, "var", plan.genes)
    if RAW in plan.matrices:
        writer.group("raw", {"encoding-type": "raw", "encoding-version": "0.1.0"})
        writer.group("raw/varm", {"encoding-type": "dict", "encoding-version": "0.1.0"})
        _write_frame(writer, "raw/var", plan.readers[0].raw_var())


def _write_frame(writer: StoreWriter, path: str, frame: pd.DataFrame) -> None:
    index = frame.index.astype(str).to_numpy(dtype=object)
    write_frame(writer, path, InMemoryColumn(index), [str(name) for name in frame.columns])
    for name in frame.columns:
        write_column(writer, path, str(name), InMemoryColumn(frame[name].array))


def write_embeddings(writer: StoreWriter, plan: ConversionPlan, destination: NDArray[np.integer]) -> None:
    """Write the dense obsm entries."""
    for name in plan.embeddings:
        width = plan.readers[0].obsm[name]
        dtypes = (reader.read_obsm(name, 0, 0).dtype for reader in plan.readers)
        dtype = np.result_type(*dtypes).newbyteorder("=")
        array = writer.dense(f"obsm/{name}", (plan.n_obs, width), dtype)
        fitting_rows = plan.budget.limit // 8 // max(1, width * dtype.itemsize)
        step = max(1, fitting_rows // array.chunks[0]) * array.chunks[0]
        start = 0
        for rows in ReorderedValues(embedding_reader(plan.readers, name, dtype), destination, step):
            array[start : start + len(rows)] = rows
            start += len(rows)


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


def write_obsm_frames(writer: StoreWriter, plan: ConversionPlan, destination: NDArray[np.integer]) -> None:
    """Write the obsm entries that are tables."""
    for name, columns in plan.obsm_frames.items():
        frames: list[Any] = [_ObsmFrame(reader, name, columns) for reader in plan.readers]
        index = ReorderedValues(obs_column_reader(plan.readers, None), destination, plan.column_step)
        write_frame(writer, f"obsm/{name}", index, [*columns])
        for column in columns:
            values = ReorderedValues(obs_column_reader(frames, column), destination, plan.column_step)
            write_column(writer, f"obsm/{name}", column, values)


def write_column_names(writer: StoreWriter, plan: ConversionPlan) -> None:
    """Write the names of the columns of sparse obsm entries, such as guides, to ``uns/obsm_columns``."""
    found = {path: column_names(plan.readers[0], path) for path in plan.matrices if path.startswith("obsm/")}
    named = {path: names for path, names in found.items() if names is not None}
    if named:
        writer.group("uns/obsm_columns", {"encoding-type": "dict", "encoding-version": "0.1.0"})
    for path, names in named.items():
        writer.strings(f"uns/obsm_columns/{path.removeprefix('obsm/')}", names)


def write_tables(writer: StoreWriter, plan: ConversionPlan) -> None:
    """Write lazypert's own tables: source rows, the run table, batches, name hashes, labels and conditions."""
    groups = plan.groups
    writer.group(TABLES, {})
    writer.array(f"{TABLES}/source_row", plan.source_row)
    if groups.row_order is not None:
        writer.array(f"{TABLES}/order", groups.row_order.astype(plan.source_row.dtype))
    write_groups(writer, groups, TABLES)
    batch = groups.cells.batch_codes()
    if batch is not None:
        writer.array(f"{TABLES}/batch", batch)
    writer.array(f"{TABLES}/name_hash", groups.cells.hashes(np.arange(plan.n_obs)))


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


def write_cell_stats(writer: StoreWriter, plan: ConversionPlan, stats_plan: CellStatsPlan, work: Path) -> None:
    """Merge and write the cell statistics that the reduce tasks of X left in their folder `work`."""
    total, n_genes = np.zeros(plan.n_obs), np.zeros(plan.n_obs, dtype=np.int32)
    # Rows without values are in no file.
    own_target = np.where(plan.groups.expand(stats_plan.target_of_run, plan.n_obs) >= 0, 0.0, np.nan)
    control_sums = np.zeros((stats_plan.n_control_subgroups, len(stats_plan.target)))
    for path in sorted(work.glob("rows-*.npz")):
        stats = CellStats.load(path)
        rows = slice(stats.first_row, stats.first_row + len(stats.total))
        total[rows], n_genes[rows], own_target[rows] = stats.total, stats.n_genes, stats.own_target
        control_sums[stats.control_subgroups] += stats.control_sums
    base = f"{TABLES}/facts"
    writer.group(base, {"gene_col": stats_plan.gene_col})
    writer.array(f"{base}/total", total)
    writer.array(f"{base}/n_genes", n_genes)
    writer.array(f"{base}/own_target", own_target)
    writer.array(f"{base}/target", stats_plan.target.astype("i4"))
    writer.array(f"{base}/control_sum", control_sums.ravel())
    writer.array(f"{base}/control_row", stats_plan.control_rows(plan.groups))
