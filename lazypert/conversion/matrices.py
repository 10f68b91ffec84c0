"""Writing the matrices of a store: each is sorted by map and reduce tasks (see `external_sort`)."""

from __future__ import annotations

import contextlib
import math
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.tasks import run
from lazypert._internal.texts import bounds_of
from lazypert.conversion.checkpoints import load_checkpoint, save_checkpoint
from lazypert.conversion.cluster_needs import needs_of_tasks
from lazypert.conversion.external_sort import BlockSorter, ShardWriter, save_reduce_inputs
from lazypert.sparse.value_stats import ValueStats
from lazypert.store.format import COLUMN_SHARD, Grid, declared_dtype, index_codec, stored_index_dtype, values_codec
from lazypert.store.manifest import Entry, match_files

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from lazypert._internal.cluster import Needs
    from lazypert.conversion.arranged_cells import ArrangedCells
    from lazypert.conversion.array_writer import ArrayWriter, Template
    from lazypert.conversion.cell_stats import CellStatsPlan
    from lazypert.conversion.external_sort import ReducedShard
    from lazypert.conversion.plan import ConversionPlan
    from lazypert.conversion.spill import Spill
    from lazypert.conversion.store_writer import StoreWriter
    from lazypert.progress import Report
    from lazypert.store.format import Compression

X_FOLDER = "0"
"""Folder of X's tasks inside the staging directory's ``work``; other matrices get the next numbers."""

_DONE = "done.json"


@dataclass(frozen=True, slots=True)
class MatrixJob:
    """One matrix to write.

    Attributes
    ----------
    name, source_name
        Its name in the store and in the files.
    n_cols
        Columns in the store.
    has_genes
        Whether its columns are the genes, which are aligned between files.
    work
        Folder of its tasks.
    cells
        Where its rows go.
    cell_stats_plan
        Cell statistics to collect; None for none.
    needs
        What workers of a cluster must have; None without a cluster.
    """

    name: str
    source_name: str
    n_cols: int
    has_genes: bool
    work: Path
    cells: ArrangedCells
    cell_stats_plan: CellStatsPlan | None
    needs: Needs | None = None


def write_matrices(
    writer: StoreWriter,
    plan: ConversionPlan,
    cells: ArrangedCells,
    cell_stats_plan: CellStatsPlan | None,
    report: Report | None,
) -> dict[str, Any]:
    """Write every matrix of a plan.

    Parameters
    ----------
    cell_stats_plan
        Cell statistics of X to collect; None for none.

    Returns
    -------
    The summary of each matrix, by its name: its shape and value statistics.
    """
    summaries: dict[str, Any] = {}
    needs = needs_of_tasks(plan.readers, writer.staging.work)
    for number, (name, source_name) in enumerate(plan.matrices.items()):  # X is the first
        has_genes = name == "X" or name.startswith("layers/")
        n_cols = len(plan.genes) if has_genes else plan.readers[0].matrices[source_name]
        stats_plan = cell_stats_plan if name == "X" else None
        work = writer.staging.work / str(number)
        job = MatrixJob(name, source_name, n_cols, has_genes, work, cells, stats_plan, needs)
        summaries[name] = write_matrix(writer, plan, job, report)
    return summaries


def write_matrix(writer: StoreWriter, plan: ConversionPlan, job: MatrixJob, report: Report | None) -> dict[str, Any]:
    """Write one matrix, unless an interrupted run has written it already; return its summary."""
    shape = [plan.n_obs, job.n_cols]
    writer.group(job.name, {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
    if (summary := _load_finished(writer, job.work)) is not None:
        return summary
    job.work.mkdir(exist_ok=True)
    spills = _sort_blocks(plan, job, report)
    value_stats = ValueStats()
    for spill in spills:
        value_stats = value_stats.merge(spill.value_stats)
    nnz = _write_indptr(writer, plan.n_obs, job, spills)
    shard_writer = _shard_writer(writer, job, nnz, value_stats, plan.options.compression)
    shards = run(
        ShardWriter.write_shard,
        [(shard_writer, shard) for shard in range(shard_writer.data.grid.n_shards)],
        workers=plan.budget.workers,
        phase=f"{job.name}: writing shards",
        size=lambda reduced: sum(entry.size for entry in reduced.entries),
        report=report,
        needs=job.needs,
    )
    writer.add(entry for reduced in shards for entry in reduced.entries)
    summary = matrix_summary(job.n_cols, nnz, value_stats, math.fsum(spill.total for spill in spills))
    _save_finished(writer, plan.n_obs, job, shards, summary)
    for spill in spills:
        spill.remove()
    return summary


def _sort_blocks(plan: ConversionPlan, job: MatrixJob, report: Report | None) -> list[Spill]:
    """Run the map tasks."""
    sizes = plan.map_task_sizes(job.source_name)
    sorters = [
        BlockSorter(reader, job.cells.destination, first_row, new_col if job.has_genes else None, job.n_cols)
        for reader, first_row, new_col in zip(plan.readers, plan.first_rows, plan.new_cols, strict=True)
    ]
    blocks = [(sorter, spec) for sorter in sorters for spec in sorter.reader.blocks(job.source_name, sizes.block_bytes)]
    return run(
        BlockSorter.sort_block,
        [(sorter, spec, job.work / f"{i:06d}.spill") for i, (sorter, spec) in enumerate(blocks)],
        workers=sizes.workers,
        phase=f"{job.name}: reading and sorting",
        size=lambda spill: spill.size,
        report=report,
        needs=job.needs,
    )


def _write_indptr(writer: StoreWriter, n_rows: int, job: MatrixJob, spills: Sequence[Spill]) -> int:
    """Write ``indptr`` to the store, and for the reduce tasks; return the number of values."""
    nnz = sum(spill.nnz for spill in spills)
    dtype = index_dtype(nnz)
    write = writer.column(f"{job.name}/indptr", dtype, n_rows + 1)

    def written() -> Iterator[NDArray[np.int64]]:
        for start, offsets in _row_offsets(spills, n_rows):
            write(start, offsets.astype(dtype))
            yield offsets

    save_reduce_inputs(job.work, spills, written())
    return nnz


def _row_offsets(spills: Sequence[Spill], n_rows: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield the (n_rows + 1,) offsets of the destination rows in parts, each with the row of its first one."""
    before = 0
    for start in range(0, n_rows + 1, COLUMN_SHARD):
        stop = min(n_rows + 1, start + COLUMN_SHARD)
        lengths = np.zeros(min(n_rows, stop) - start, np.int64)
        for spill in spills:
            rows, n_values = spill.row_lengths(start, start + len(lengths))
            lengths[rows - start] += n_values
        offsets = before + bounds_of(lengths)
        yield start, offsets[: stop - start]
        before = int(offsets[-1])


def index_dtype(nnz: int) -> np.dtype[Any]:
    """Return the dtype of the row bounds of a matrix, which other readers also get its column numbers in."""
    return np.dtype("i4" if nnz < 2**31 else "i8")


def _shard_writer(
    writer: StoreWriter, job: MatrixJob, nnz: int, value_stats: ValueStats, compression: Compression
) -> ShardWriter:
    data, indices = matrix_templates(writer, job.name, (job.n_cols, nnz), value_stats, compression)
    return ShardWriter(
        data=data,
        indices=indices,
        n_cols=job.n_cols,
        work=job.work,
        cell_stats_plan=job.cell_stats_plan,
        subgroup_of_row=None if job.cell_stats_plan is None else job.cells.subgroup,
    )


def matrix_templates(
    writer: ArrayWriter,
    name: str,
    n_cols_and_nnz: tuple[int, int],
    value_stats: ValueStats,
    compression: Compression,
) -> tuple[Template, Template]:
    """Create the arrays of values and column numbers of a matrix, in the dtypes that its values need."""
    n_cols, nnz = n_cols_and_nnz
    grid, dtype = Grid.matrix(nnz), value_stats.dtype()
    declared = declared_dtype(dtype, value_stats.maximum, value_stats.minimum)
    index = stored_index_dtype(n_cols, index_dtype(nnz))
    codec = index_codec(index, compression)
    return (
        writer.template(f"{name}/data", dtype, grid, codec=values_codec(dtype), declared=declared, keep=True),
        writer.template(f"{name}/indices", index, grid, codec=codec, declared=index_dtype(nnz), keep=True),
    )


def matrix_summary(n_cols: int, nnz: int, value_stats: ValueStats, total: float) -> dict[str, Any]:
    """Return the summary of a matrix for the root metadata."""
    return {
        "n_cols": n_cols,
        "nnz": nnz,
        "sum": total if math.isfinite(total) else None,
        "integral": value_stats.integral,
        "minimum": value_stats.minimum,
        "maximum": value_stats.maximum,
        "n_nonfinite": value_stats.n_nonfinite,
    }


def _save_finished(
    writer: StoreWriter, n_rows: int, job: MatrixJob, shards: Sequence[ReducedShard], summary: dict[str, Any]
) -> None:
    """Save the checkpoint of a completed matrix: its summary, and the checksums of all its files."""
    keys = [f"{job.name}/indptr/c/{shard}" for shard in range(Grid.column(n_rows + 1).n_shards)]
    keys += [f"{job.name}/{array}/zarr.json" for array in ("data", "indices", "indptr")]
    entries = [entry for reduced in shards for entry in reduced.entries] + [writer.entry(key) for key in keys]
    cell_stats = [entry for reduced in shards for entry in reduced.cell_stats]
    record = {
        "summary": summary,
        "files": [[e.key, e.size, e.crc32] for e in entries],
        "cell_stats": [[e.key, e.size, e.crc32] for e in cell_stats],
    }
    save_checkpoint(job.work / _DONE, record)


def _load_finished(writer: StoreWriter, work: Path) -> dict[str, Any] | None:
    """Return the summary of a matrix that an interrupted run completed, if all its files are intact.

    Otherwise the folder of its tasks is deleted.
    """
    record = load_checkpoint(work / _DONE)
    if record is None:
        return None
    with contextlib.suppress(KeyError, TypeError):  # not written by this version
        entries, cell_stats = ([Entry(*entry) for entry in record[key]] for key in ("files", "cell_stats"))
        summary: dict[str, Any] = record["summary"]
        metadata = [entry for entry in entries if entry.key.endswith("zarr.json")]  # which stay local until the end
        values = [entry for entry in entries if not entry.key.endswith("zarr.json")]
        is_there = match_files(writer.root, metadata) and writer.files.holds(values)
        if is_there and match_files(work, cell_stats):
            writer.add(entries)
            return summary
    shutil.rmtree(work)
    return None
