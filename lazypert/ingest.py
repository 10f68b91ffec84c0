"""Conversion: one pass over the source into sorted spills, one over the spills into shards."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import operator
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lazypert.columns import Whole, write_column, write_frame
from lazypert.converter import open_source
from lazypert.errors import ConfigError, DiskFullError, SourceFormatError
from lazypert.facts import Asked, RowFacts
from lazypert.manifest import Entry, are_as_noted
from lazypert.memory import Budget, format_bytes, give_back
from lazypert.partial import recall, record
from lazypert.plan import DATASET, RAW, Options, Plan, inverse, make_plan, stamp
from lazypert.progress import Bar
from lazypert.reorder import Reordered, joined
from lazypert.schema import TABLES, Grid, Roles, ValueFacts, values_codec
from lazypert.shuffle import Reduction, map_block, note_spills
from lazypert.tasks import run
from lazypert.writer import StoreWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from lazypert.progress import Progress, Report
    from lazypert.spill import Spill

_LOG = logging.getLogger("lazypert")
_SLACK = 256 * 1024**2  # what `convert` promises to stay within, over its limit
_DESTINATION, _RUN_OF_ROW = "destination.npy", "run_of_row.npy"


def convert(
    source: str | Path | Sequence[str | Path],
    store: str | Path,
    *,
    pert_col: str | None = None,
    control_pert: str | None = None,
    cell_type_col: str | None = None,
    batch_col: str | None = None,
    layer: str | None = None,
    order: str = "grouped",
    seed: int = 0,
    memory_limit: int | str = "1GiB",
    overwrite: bool = False,
    join: str = "inner",
    progress: Callable[[Progress], None] | bool | None = None,
) -> Path:
    """Convert a screen, or several, into one lazypert store.

    The store is also a valid AnnData Zarr v3 store. Either it is complete or there is none: until
    the last step everything lies in ``<store>.partial-<id>``. An error of the source or of an
    option removes that folder. Work that is cut off (a kill, Ctrl-C, a full or failing disk, a lost
    worker) stays there, and the same conversion, run again, checks it and goes on from it; when the
    source or an option has changed it starts over and says so (logger ``lazypert``).

    Parameters
    ----------
    source
        A file, or a list of files to put into one store under one vocabulary. With several, each
        cell's file (its stem) becomes the obs column ``dataset``; a column of that name in a file
        is kept as ``dataset_in_file``.
    store
        Folder to make.
    pert_col, cell_type_col, batch_col
        obs columns of the perturbation, the cell type and the batch.
    control_pert
        Label of control cells in `pert_col`.
    layer
        Layer to become the store's X; the file's own X is kept as ``layers["X"]``.
    order
        ``"grouped"`` sorts cells by (cell type, perturbation, dataset, batch) and shuffles them
        within, which makes every group one contiguous read; ``"source"`` keeps the file's order.
        Without any of the three columns there is nothing to group by and the order stays.
    seed
        Of the shuffle.
    memory_limit
        Bytes, or text like ``"1GiB"``. The peak of the process stays within 256 MiB of this, over
        what the imports take. A `dask.distributed.Client` decides itself how many tasks run at once.
    overwrite
        Replace an existing store, once the new one is complete.
    join
        Genes of several files, aligned by name: ``"inner"`` keeps those that every file measured,
        ``"outer"`` keeps all, zero where a file lacks them (obs column ``dataset`` and var columns
        ``measured_in_<dataset>`` tell these zeros from measured ones).
    progress
        Called with every `lazypert.progress.Progress`. None shows a bar where stderr is a terminal;
        False shows nothing.

    Returns
    -------
    The store's path.

    Raises
    ------
    StoreExistsError
        When `store` exists and `overwrite` is False, or another process is writing it.
    SourceFormatError
        When a file is not what it should be, or changes while it is read.
    ColumnNotFoundError, LabelNotFoundError
        When a column or the control label does not occur.
    ConfigError
        When an option makes no sense, or `memory_limit` is too small for the file's own pieces.
    DiskFullError
        When the spills or the store don't fit on the disk: beforehand where that is certain.

    Examples
    --------
    >>> import lazypert as lp
    >>> from lazypert.simulate import reference_screen
    >>> path = reference_screen("screen.h5ad")  # doctest: +SKIP
    >>> lp.convert(path, "screen.zarr", pert_col="perturbation", control_pert="non-targeting",
    ...            cell_type_col="cell_type", batch_col="batch")  # doctest: +SKIP
    """
    paths = [Path(p).absolute() for p in ([source] if isinstance(source, str | Path) else source)]
    if not paths:
        raise ConfigError("source: got an empty list, expected at least one file.")
    dataset_col = DATASET if len(paths) > 1 else None
    roles = Roles(
        pert_col=pert_col,
        cell_type_col=cell_type_col,
        batch_col=batch_col,
        dataset_col=dataset_col,
        control_pert=control_pert if control_pert is None else str(control_pert),  # labels are text in the store
    )
    options = Options(roles=roles, layer=layer, order=order, seed=operator.index(seed), join=join)
    budget = Budget.of(memory_limit)
    target = Path(store).absolute()
    if target.is_symlink():  # the store goes where the link points, and the link stays
        target = target.resolve()
    _check_target(paths, target)
    StoreWriter.check(target, overwrite=overwrite)
    plan = make_plan([open_source(path) for path in paths], options, budget)
    before = [stamp(path) for path in paths]
    _project(plan, target)
    with contextlib.ExitStack() as stack:
        report = stack.enter_context(Bar()) if progress is None or progress is True else progress or None
        writer = stack.enter_context(_writer(target, plan, overwrite=overwrite))
        stack.enter_context(_disk_full(writer))
        attrs = _write(writer, plan, report)
        for path, was in zip(paths, before, strict=True):
            if stamp(path) != was:
                raise SourceFormatError(
                    f"{str(path)!r} changed while it was converted, so that the store would hold parts of two files. "
                    "No store was made. Convert it again when nothing writes to it."
                )
        writer.finalise(attrs)
    return Path(store)


def _check_target(paths: list[Path], store: Path) -> None:
    """Overwriting must not reach the source."""
    target = store.resolve()
    for path in paths:
        if target in (path.resolve(), *path.resolve().parents):
            raise ConfigError(
                f"store: {str(store)!r} is the source {str(path)!r}, or a folder that the source is inside. "
                "The store would replace it. Choose another target; nothing was written."
            )


def _project(plan: Plan, target: Path) -> None:
    """Say beforehand what will not fit."""
    allowed, need = plan.budget.limit + _SLACK, plan.projected_memory()
    if need > allowed:
        raise ConfigError(
            f"memory_limit: got {format_bytes(plan.budget.limit)}, expected at least {format_bytes(need - _SLACK)}: "
            f"that much is held to sort {plan.n_obs:,} cells. Nothing was written."
        )
    folder = next(path for path in (target.absolute().parents) if path.exists())
    plan.check_disk(folder, shutil.disk_usage(folder).free)


def _writer(target: Path, plan: Plan, *, overwrite: bool) -> StoreWriter:
    writer = StoreWriter(target, overwrite=overwrite, fingerprint=plan.fingerprint())
    if writer.partial.is_resumed:
        _LOG.info("%s: going on from what an earlier run has done", target)
    elif writer.partial.is_restarted:
        _LOG.warning("%s: the source or the options have changed since an earlier run: starting over", target)
    return writer


@contextlib.contextmanager
def _disk_full(writer: StoreWriter) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(
            f"The disk of {str(writer.target)!r} is full ({error.strerror}). No store was made. What is done so far is "
            f"kept in {writer.partial.folder.name!r}: make room and run the same conversion again, which goes on from "
            "it, or delete that folder."
        ) from error


def _write(writer: StoreWriter, plan: Plan, report: Report | None) -> dict[str, Any]:
    """Write everything but the root's metadata; return the entries of its ``lazypert`` attribute."""
    work = writer.partial.work
    destination = inverse(plan.source_row)
    np.save(work / _DESTINATION, destination)
    np.save(work / _RUN_OF_ROW, plan.groups.expand(np.arange(len(plan.groups.start), dtype="i4"), plan.n_obs))
    for group in ("layers", "obsm", "obsp", "varm", "varp", "uns"):
        writer.group(group, {"encoding-type": "dict", "encoding-version": "0.1.0"})
    _write_obs(writer, plan, destination)
    _write_var(writer, plan)
    give_back()
    asked: Asked | None = Asked.of(plan.groups, plan.genes)
    assert asked is not None
    if asked.sums_bytes > plan.budget.limit // 8:
        asked = None
        plan.warnings.append("control sums of every target would not fit the memory limit: QC will read the matrix")
    summary = {
        name: _write_matrix(writer, plan, name, origin, work / str(number), asked if name == "X" else None, report)
        for number, (name, origin) in enumerate(plan.matrices.items())
    }
    _write_obsm(writer, plan, destination)
    _write_tables(writer, plan)
    if asked is not None:
        _write_facts(writer, plan, asked, work / "0")
    groups = plan.groups
    return {
        "sources": [
            {"name": name, "file": reader.path.name, "n_obs": reader.n_obs, "size": size, "mtime_ns": mtime}
            for name, reader in zip(plan.names, plan.readers, strict=True)
            for size, mtime in [stamp(reader.path)]
        ],
        "roles": plan.stored_roles.to_json(),
        "order": "grouped" if plan.is_grouped else "source",
        "seed": plan.options.seed,
        "layer": plan.options.layer,
        "n_obs": plan.n_obs,
        "n_vars": len(plan.genes),
        "matrices": summary,
        "summary": {
            "n_groups": len(groups),
            "n_perturbations": len(groups.labels["perturbation"]),
            "n_cell_types": len(groups.labels["cell_type"]),
            "n_batches": len(groups.labels["batch"]),
            "n_controls": int(groups.sizes[groups.is_control].sum()),
            "n_unlabelled": groups.n_unlabelled,
        },
        "warnings": plan.warnings,
    }


def _write_matrix(
    writer: StoreWriter,
    plan: Plan,
    name: str,
    origin: str,
    work: Path,
    asked: Asked | None,
    report: Report | None,
) -> dict[str, Any]:
    has_genes = name == "X" or name.startswith("layers/")
    n_cols = len(plan.genes) if has_genes else plan.readers[0].matrices[origin]
    writer.group(name, {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [plan.n_obs, n_cols]})
    if (done := _finished(writer, work)) is not None:
        return done
    work.mkdir(exist_ok=True)
    spills = _map(plan, name, origin, n_cols, has_genes, work, report)
    facts = ValueFacts()
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
    record(work / "done.json", {"summary": summary, "files": files, "notes": notes})
    for spill in spills:
        spill.remove()
    return summary


def _finished(writer: StoreWriter, work: Path) -> dict[str, Any] | None:
    """Summary of a matrix that an earlier run wrote, when every byte is as it was; else its work is removed."""
    found = recall(work / "done.json")
    if found is None:
        return None
    with contextlib.suppress(KeyError, TypeError):  # it is no note of ours
        entries, notes = ([Entry(*entry) for entry in found[kind]] for kind in ("files", "notes"))
        summary: dict[str, Any] = found["summary"]
        if are_as_noted(writer.root, entries) and are_as_noted(work, notes):
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
    if groups.order is not None:
        writer.array(f"{TABLES}/order", groups.order.astype(plan.source_row.dtype))
    writer.array(f"{TABLES}/runs/start", groups.start)
    writer.array(f"{TABLES}/runs/stop", groups.stop)
    for axis, codes in groups.codes.items():
        writer.array(f"{TABLES}/runs/{axis}", codes)
        writer.strings(f"{TABLES}/labels/{axis}", groups.labels[axis].astype(object))


def _write_facts(writer: StoreWriter, plan: Plan, asked: Asked, work: Path) -> None:
    """Put together what the reduce tasks noted of the rows of X."""
    total, n_genes = np.zeros(plan.n_obs), np.zeros(plan.n_obs, dtype=np.int32)
    own = np.where(plan.groups.expand(asked.own, plan.n_obs) >= 0, 0.0, np.nan)  # rows without values are in no note
    sums = np.zeros((asked.n_control_runs, len(asked.target)))
    for path in sorted(work.glob("rows-*.npz")):
        found = RowFacts.load(path)
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
