"""Conversion: one pass over the source into sorted spills, one over the spills into shards."""

from __future__ import annotations

import contextlib
import errno
import logging
import operator
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.memory import Budget, format_bytes, release_memory
from lazypert._internal.permutation import inverse
from lazypert.conversion.cell_stats import CellStatsPlan
from lazypert.conversion.plan import DATASET, Options, Plan, make_plan, stamp
from lazypert.conversion.store_writer import StoreWriter
from lazypert.converter import open_source
from lazypert.errors import ConfigError, DiskFullError, SourceFormatError
from lazypert.progress import Bar
from lazypert.screen.roles import Roles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lazypert.progress import Progress, Report
from lazypert.conversion.matrices import _DESTINATION, _RUN_OF_ROW, _write_matrix
from lazypert.conversion.tables import _write_facts, _write_obs, _write_obsm, _write_tables, _write_var

_LOG = logging.getLogger("lazypert")


_SLACK = 256 * 1024**2  # what `convert` promises to stay within, over its limit


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
    release_memory()
    asked: CellStatsPlan | None = CellStatsPlan.of(plan.groups, plan.genes)
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
