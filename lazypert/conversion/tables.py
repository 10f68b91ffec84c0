"""Writing the obs, var and obsm tables of a store, and lazypert's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lazypert.conversion.cell_stats import CellStats, CellStatsPlan
from lazypert.conversion.dataframe_writer import Whole, write_column, write_frame
from lazypert.conversion.plan import DATASET, RAW, Plan
from lazypert.conversion.reorder import Reordered, joined
from lazypert.store.format import TABLES

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from lazypert.conversion.store_writer import StoreWriter


def _write_obs(writer: StoreWriter, plan: Plan, destination: NDArray[np.integer]) -> None:
    several, columns = len(plan.readers) > 1, plan.columns

    def pieces(name: str | None) -> Reordered:
        return Reordered(joined(plan.readers, name), destination, plan.piece)

    write_frame(writer, "obs", pieces(None), [*([DATASET] if several else []), *columns.values()])
    for name, stored in columns.items():
        write_column(writer, "obs", stored, pieces(name))
    if several:
        codes = np.repeat(np.arange(len(plan.names)), [reader.n_obs for reader in plan.readers])
        named = pd.Categorical.from_codes(codes[plan.source_row], plan.names)
        write_column(writer, "obs", DATASET, Whole(named))


def _write_var(writer: StoreWriter, plan: Plan) -> None:
    _write_table(writer, "var", plan.genes)
    if RAW in plan.matrices:
        writer.group("raw", {"encoding-type": "raw", "encoding-version": "0.1.0"})
        writer.group("raw/varm", {"encoding-type": "dict", "encoding-version": "0.1.0"})
        _write_table(writer, "raw/var", plan.readers[0].raw_var())


def _write_table(writer: StoreWriter, path: str, frame: pd.DataFrame) -> None:
    index = frame.index.astype(str).to_numpy(dtype=object)
    write_frame(writer, path, Whole(index), [str(name) for name in frame.columns])
    for name in frame.columns:
        write_column(writer, path, str(name), Whole(frame[name].array))


def _write_obsm(writer: StoreWriter, plan: Plan, destination: NDArray[np.integer]) -> None:
    readers = plan.readers
    bounds = np.cumsum([0, *(reader.n_obs for reader in readers)]).tolist()
    for name in plan.obsm:
        width = readers[0].obsm[name]
        dtypes = (reader.read_obsm(name, 0, 0).dtype for reader in readers)
        dtype = np.result_type(*dtypes).newbyteorder("=")

        def read(start: int, stop: int, name: str = name, dtype: np.dtype[Any] = dtype) -> NDArray[Any]:
            parts = [
                reader.read_obsm(name, max(start - first, 0), min(stop, last) - first)
                for reader, first, last in zip(readers, bounds, bounds[1:], strict=False)
                if max(start, first) <= min(stop, last)
            ]
            return np.concatenate(parts).astype(dtype, copy=False)

        array = writer.dense(f"obsm/{name}", (plan.n_obs, width), dtype)
        fitting = plan.budget.limit // 8 // max(1, width * dtype.itemsize)
        step = max(1, fitting // array.chunks[0]) * array.chunks[0]
        start = 0
        for piece in Reordered(read, destination, step):
            array[start : start + len(piece)] = piece
            start += len(piece)


def _write_tables(writer: StoreWriter, plan: Plan) -> None:
    groups = plan.groups
    writer.group(TABLES, {})
    writer.array(f"{TABLES}/source_row", plan.source_row)
    if groups.row_order is not None:
        writer.array(f"{TABLES}/order", groups.row_order.astype(plan.source_row.dtype))
    writer.array(f"{TABLES}/runs/start", groups.start)
    writer.array(f"{TABLES}/runs/stop", groups.stop)
    for axis, codes in groups.codes.items():
        writer.array(f"{TABLES}/runs/{axis}", codes)
        writer.strings(f"{TABLES}/labels/{axis}", groups.labels[axis].astype(object))


def _write_facts(writer: StoreWriter, plan: Plan, asked: CellStatsPlan, work: Path) -> None:
    """Put together what the reduce tasks noted of the rows of X."""
    total, n_genes = np.zeros(plan.n_obs), np.zeros(plan.n_obs, dtype=np.int32)
    own = np.where(plan.groups.expand(asked.own, plan.n_obs) >= 0, 0.0, np.nan)  # rows without values are in no note
    sums = np.zeros((asked.n_control_runs, len(asked.target)))
    for path in sorted(work.glob("rows-*.npz")):
        found = CellStats.load(path)
        rows = slice(found.first, found.first + len(found.total))
        total[rows], n_genes[rows], own[rows] = found.total, found.n_genes, found.own
        sums[found.control] += found.sums
    base = f"{TABLES}/facts"
    writer.group(base, {"gene_col": asked.gene_col})
    writer.array(f"{base}/total", total)
    writer.array(f"{base}/n_genes", n_genes)
    writer.array(f"{base}/own_target", own)
    writer.array(f"{base}/target", asked.target.astype("i4"))
    writer.array(f"{base}/control_sum", sums.ravel())
