"""Writing one matrix of a store: map blocks to spills, reduce spills to shards."""

from __future__ import annotations

import contextlib
import math
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.tasks import run
from lazypert.conversion.checkpoints import load_checkpoint, save_checkpoint
from lazypert.conversion.external_sort import Reduction, map_block, note_spills
from lazypert.sparse.value_stats import ValueStats
from lazypert.store.format import Grid, values_codec
from lazypert.store.manifest import Entry, match_files

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from lazypert.conversion.cell_stats import CellStatsPlan
    from lazypert.conversion.plan import Plan
    from lazypert.conversion.spill import Spill
    from lazypert.conversion.store_writer import StoreWriter
    from lazypert.progress import Report


_DESTINATION, _RUN_OF_ROW = "destination.npy", "run_of_row.npy"


def _write_matrix(
    writer: StoreWriter,
    plan: Plan,
    name: str,
    origin: str,
    work: Path,
    asked: CellStatsPlan | None,
    report: Report | None,
) -> dict[str, Any]:
    has_genes = name == "X" or name.startswith("layers/")
    n_cols = len(plan.genes) if has_genes else plan.readers[0].matrices[origin]
    writer.group(name, {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [plan.n_obs, n_cols]})
    if (done := _finished(writer, work)) is not None:
        return done
    work.mkdir(exist_ok=True)
    spills = _map(plan, name, origin, n_cols, has_genes, work, report)
    facts = ValueStats()
    for spill in spills:
        facts = facts.merge(spill.facts)
    indptr = _row_offsets(spills, plan.n_obs)
    np.save(work / "indptr.npy", indptr)
    note_spills(work, spills)
    nnz = int(indptr[-1])
    index_dtype, grid = np.dtype("i4" if nnz < 2**31 else "i8"), Grid.matrix(nnz)
    writer.array(f"{name}/indptr", indptr.astype(index_dtype))
    del indptr
    reduction = Reduction(
        data=writer.template(f"{name}/data", facts.dtype(), grid, codec=values_codec(facts.dtype()), keep=True),
        indices=writer.template(f"{name}/indices", index_dtype, grid, keep=True),
        n_cols=n_cols,
        work=work,
        asked=asked,
        run_of_row=None if asked is None else writer.partial.work / _RUN_OF_ROW,
    )
    shards = run(
        Reduction.write_shard,
        [(reduction, shard) for shard in range(grid.n_shards)],
        workers=plan.budget.workers,
        phase=f"{name}: writing shards",
        size=lambda reduced: sum(entry.size for entry in reduced.entries),
        report=report,
    )
    entries = [entry for reduced in shards for entry in reduced.entries]
    writer.add(entries)
    total = math.fsum(spill.total for spill in spills)
    summary = {
        "n_cols": n_cols,
        "nnz": nnz,
        "sum": total if math.isfinite(total) else None,
        "integral": facts.integral,
        "minimum": facts.minimum,
        "maximum": facts.maximum,
        "n_nonfinite": facts.n_nonfinite,
    }
    of_indptr = range(Grid.column(plan.n_obs + 1).n_shards)
    others = [f"{name}/indptr/c/{shard}" for shard in of_indptr]
    others += [f"{name}/{part}/zarr.json" for part in ("data", "indices", "indptr")]
    files = [[e.key, e.size, e.crc32] for e in (*entries, *(writer.entry(key) for key in others))]
    notes = [[e.key, e.size, e.crc32] for reduced in shards for e in reduced.notes]
    save_checkpoint(work / "done.json", {"summary": summary, "files": files, "notes": notes})
    for spill in spills:
        spill.remove()
    return summary


def _finished(writer: StoreWriter, work: Path) -> dict[str, Any] | None:
    """Summary of a matrix that an earlier run wrote, when every byte is as it was; else its work is removed."""
    found = load_checkpoint(work / "done.json")
    if found is None:
        return None
    with contextlib.suppress(KeyError, TypeError):  # it is no note of ours
        entries, notes = ([Entry(*entry) for entry in found[kind]] for kind in ("files", "notes"))
        summary: dict[str, Any] = found["summary"]
        if match_files(writer.root, entries) and match_files(work, notes):
            writer.add(entries)
            return summary
    shutil.rmtree(work)
    return None


def _map(
    plan: Plan, name: str, origin: str, n_cols: int, has_genes: bool, work: Path, report: Report | None
) -> list[Spill]:
    workers, block_bytes, _ = plan.tasks(origin)
    blocks = [
        (reader, spec, first, new_col if has_genes else None)
        for reader, first, new_col in zip(plan.readers, plan.first_rows, plan.new_cols, strict=True)
        for spec in reader.blocks(origin, block_bytes)
    ]
    destination = work.parent / _DESTINATION
    return run(
        map_block,
        [
            (reader, spec, destination, first, new_col, n_cols, work / f"{i:06d}.spill")
            for i, (reader, spec, first, new_col) in enumerate(blocks)
        ],
        workers=workers,
        phase=f"{name}: reading and sorting",
        size=lambda spill: spill.size,
        report=report,
    )


def _row_offsets(spills: Sequence[Spill], n_rows: int) -> NDArray[np.int64]:
    """(n_rows + 1,) where each destination row begins."""
    indptr = np.zeros(n_rows + 1, dtype=np.int64)
    for spill in spills:
        rows, lengths = spill.row_lengths()
        indptr[rows + 1] += lengths
    return np.cumsum(indptr, out=indptr)
