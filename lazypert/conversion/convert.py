"""Converting source files into a store: plan, stage, write tables and matrices, finalise."""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazypert._internal.memory import Budget, release_memory
from lazypert._internal.paths import is_url, location, require_plain_url, shown_url
from lazypert._internal.validation import named_options, require_flag, require_integer
from lazypert.conversion.arranged_cells import arrange_cells
from lazypert.conversion.cell_stats import CellStatsPlan
from lazypert.conversion.cluster_needs import check_cluster
from lazypert.conversion.given_sources import GivenSources
from lazypert.conversion.isolated_reader import ended_by_interrupt
from lazypert.conversion.joined_obs import join_obs
from lazypert.conversion.kept_elements import write_elements
from lazypert.conversion.matrices import X_FOLDER, write_matrices
from lazypert.conversion.notes import NO_CONTROLS
from lazypert.conversion.plan import DATASET, ConversionOptions, source_stamp
from lazypert.conversion.planner import dataset_names, make_plan
from lazypert.conversion.remote_staging import remote_target, work_folder
from lazypert.conversion.sorted_columns import ColumnJob
from lazypert.conversion.staging import held_bytes
from lazypert.conversion.store_writer import StoreWriter
from lazypert.conversion.table_writer import (
    write_cell_stats,
    write_column_names,
    write_embeddings,
    write_obs,
    write_obsm_frames,
    write_tables,
    write_var,
)
from lazypert.converter import is_in_memory
from lazypert.errors import ConfigError, DiskFullError, NotCopiedWarning
from lazypert.progress import Bar
from lazypert.screen.roles import Roles, control_labels, covariate_names
from lazypert.store.format import default_compression
from lazypert.store.remote_file import RemoteFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lazypert.conversion.given_sources import Source
    from lazypert.conversion.joined_obs import ObsTables
    from lazypert.conversion.plan import ConversionPlan, Join, Order
    from lazypert.converter import ScreenReader
    from lazypert.progress import Progress, Report
    from lazypert.screen.groups import Groups
    from lazypert.screen.renames import Renames
    from lazypert.store.format import Compression
    from lazypert.store.object_folder import ObjectFolder

_LOG = logging.getLogger("lazypert")
CELLS_FOLDER = "cells"
"""Folder of the tasks about cells inside the staging directory's ``work``."""

_SHOWN_LINES = 5  # of what was not copied, in a warning


@named_options
def convert(
    source: Source | Sequence[Source],
    store: str | Path,
    *,
    pert_col: str | None = None,
    control_pert: str | Sequence[str] | None = None,
    control_col: str | None = None,
    separator: str | None = None,
    rename_perturbations: Renames | None = None,
    cell_type_col: str | None = None,
    batch_col: str | None = None,
    covariates: str | Sequence[str] = (),
    layer: str | None = None,
    order: Order = "grouped",
    seed: int = 0,
    memory_limit: int | str = "1GiB",
    overwrite: bool = False,
    join: Join = "inner",
    obs: ObsTables | None = None,
    isolate: bool = False,
    compression: Compression | None = None,
    storage_options: Mapping[str, Any] | None = None,
    source_storage_options: Mapping[str, Any] | None = None,
    work_dir: str | Path | None = None,
    progress: Callable[[Progress], None] | bool | None = None,
) -> Path | str:
    """Convert one or more source files into a lazypert store.

    The store is also a valid AnnData Zarr v3 store. It appears only when it is complete: until then
    everything is written to the staging directory ``<store>.partial-<id>``. If a source or
    option is invalid, that directory is removed. After an interruption (a kill, Ctrl-C, a full or failing disk,
    a lost worker) it is kept, and the same conversion, run again, verifies its checkpoints and resumes. If the
    source or an option has changed, the conversion starts over and logs a warning (logger
    ``lazypert``).

    Parameters
    ----------
    source
        A file, its URL, or an AnnData, or a list of them to put into one store. Genes are aligned, labels are
        merged, and the obs column ``dataset`` holds the stem of each cell's file; a column of that name in a
        file becomes ``dataset_in_file``. An AnnData may be in memory, backed (``backed="r"``) or lazy
        (``anndata.experimental.read_lazy``), or a view of such. It gives the same store as its ``.h5ad`` file, but
        an interrupted conversion starts over, and it is not sent to other processes. In memory it is called ``adata``.
    store
        Path or URL of the new store. Here and in `source`, ``~`` and ``$VARIABLES`` are replaced.
    pert_col, cell_type_col, batch_col
        obs columns of the perturbation, the cell type and the batch.
    control_pert
        Label of control cells in `pert_col`, or a list of several. ``*`` stands for any text, and ``?`` for any
        character. Labels of controls stay apart, and all of their cells are controls.
    control_col
        Boolean obs column that marks the controls, in place of `control_pert`. The labels of the cells that it marks
        become the control labels; each label has to be marked in all of its cells or in none.
    separator
        Text between the parts of a combination's label, such as ``"+"``: ``B+A`` is then the same perturbation as
        ``A+B``, and ``A+<control>`` the same as ``A``. It is never guessed, because names of genes contain dots,
        dashes and underscores. The obs column keeps its labels.
    covariates
        Further obs columns, such as ``("dose", "time")``, that together with the perturbation make a *condition*:
        groups, sentences and splits are then those of one cell type, perturbation and condition. Numbers are read as
        labels. A cell without a value, such as a control without a dose, has an empty label.
    rename_perturbations
        Spellings to merge: ``{"ctrl ": "ctrl"}`` gives cells labelled ``"ctrl "`` the label ``"ctrl"``, also as a part
        of a combination; ``"strip"`` removes blanks around every label and part. Nothing is merged by default, and the
        obs column keeps its labels.
    layer
        Layer to use as the store's X; the file's own X becomes ``layers["X"]``. ``"raw"`` uses the matrix of AnnData's
        ``raw``, with its genes and var table; X and the layers are then kept only if they have the same genes.
    order
        ``"grouped"`` sorts cells by (cell type, perturbation, covariates, dataset), so that a group is one contiguous
        read, and orders them by a hash of their names within each group, so that any part of it is a random
        sample; ``"source"`` keeps the file's order. Without any of these columns there are no groups,
        and the order is kept.
    seed
        Has no effect: the order follows from the cells' names alone, so that the same cells are always stored,
        split and sampled alike. Kept so that existing calls work; any other value than 0 gives a warning.
    memory_limit
        Bytes, or text such as ``"1GiB"``. The peak memory of the process stays within 256 MiB of
        this limit, not counting imports. A `dask.distributed.Client` decides how many tasks run at
        once.
    overwrite
        Replace an existing store, once the new one is complete.
    join
        Which genes of several files to keep, aligned by name: ``"inner"`` keeps genes that every file
        measured; ``"outer"`` keeps all genes, with zeros where a file lacks them (the obs column
        ``dataset`` and the var columns ``measured_in_<dataset>`` distinguish these from measured zeros).
    obs
        Tables of further obs columns, which are joined by cell name: the path of a ``.csv``, ``.tsv`` or ``.parquet``
        file, a DataFrame, or a list of them; for several files also a dict from the stem of each file's name to its
        tables. Barcodes are in the index of a DataFrame, in a column such as ``cell_barcode``, or in the first column
        of a file, so that Cell Ranger's ``protospacer_calls_per_cell.csv`` can be passed as it is. `pert_col`
        and the other options may name these columns. Cells without a row get missing values.
    isolate
        Read the files in a process of their own. Some damaged files crash the library that reads them, or keep it
        busy for ever; this then becomes a `SourceFormatError` instead of the end of the whole process. The store has
        the same bytes. The command ``lazypert convert`` always does this. Objects are read in this process.
    compression
        How column numbers are stored: ``"fast"`` as they are, or ``"compact"`` as differences, which takes about a
        third less space and decodes more slowly. None: ``"fast"`` in a local folder, where decoding limits
        loading, and ``"compact"`` at a URL, where the network does. All values are the same.
    storage_options
        Credentials, address and region of the storage, for the URLs of `store` and `source`, such as
        ``{"key": ..., "secret": ..., "endpoint_url": ...}``.
    source_storage_options
        Those of the sources, if they are not the same; ``{}`` for none.
    work_dir
        Local folder for spills and checkpoints, if `store` is a URL; on a cluster, one that all workers share. By
        default a folder of this user below that of temporary files. A local store has them beside it.
    progress
        Called with every `lazypert.progress.Progress`. None shows a bar if stderr is a terminal;
        False shows nothing.

    Returns
    -------
    The path of the store, or its URL.

    Warns
    -----
    NotCopiedWarning
        If the files hold something that the store will not, such as ``obsp``. The store lists it too:
        ``Store(path).attrs["warnings"]``.

    Raises
    ------
    StoreExistsError
        If `store` exists and `overwrite` is False, or if another process is writing to it.
    SourceFormatError
        If a file is malformed, or changes during the conversion.
    ColumnNotFoundError, LabelNotFoundError
        If a column or the control label does not exist.
    ConfigError
        If an option is invalid, a bucket does not exist, access is refused, or `memory_limit` is too small for a chunk
        of the file.
    ClusterError
        If a `dask.distributed.Client` is active and a worker cannot read the files or write beside the store, which
        is checked first, or if the cluster is lost. An interrupted conversion resumes.
    MachineError
        If a server does not answer. What is finished is kept, and the same call resumes.
    DiskFullError
        If the spills or the store do not fit on the disk; raised before anything is written
        if that is certain.

    Examples
    --------
    >>> import lazypert as lp
    >>> from lazypert.simulate import reference_screen
    >>> path = reference_screen("screen.h5ad")  # doctest: +SKIP
    >>> lp.convert(path, "screen.zarr", pert_col="perturbation", control_pert="non-targeting",
    ...            cell_type_col="cell_type", batch_col="batch")  # doctest: +SKIP
    """
    if source_storage_options is None:
        source_storage_options = storage_options
    sources = GivenSources.of(source, source_storage_options)
    place = location("store", store)
    roles = Roles(
        pert_col=pert_col,
        cell_type_col=cell_type_col,
        batch_col=batch_col,
        dataset_col=DATASET if len(sources.given) > 1 else None,
        control_pert=control_labels("control_pert", control_pert),
        separator=separator,
        covariates=covariate_names(covariates),
        rename_perturbations=rename_perturbations,
    )
    if require_integer("seed", seed):
        warnings.warn(
            f"seed: got {seed}, which has no effect: the order of the cells follows from their names. Leave it out.",
            FutureWarning,
            stacklevel=3,
        )
    options = ConversionOptions(
        roles=roles,
        layer=layer,
        order=order,
        join=join,
        control_col=control_col,
        compression=default_compression(place) if compression is None else compression,
    )
    budget = Budget.of(memory_limit)
    target = _resolve_target(place, storage_options, sources.files)
    folder = work_folder(target, work_dir)
    StoreWriter.check(target, overwrite=overwrite)
    require_flag("isolate", isolate)
    readers = sources.open(isolate=isolate)
    check_cluster(sources.files, target if isinstance(target, Path) else folder / "store")
    with ended_by_interrupt(readers):
        plan = _make_plan(readers, options, budget, obs)
        _convert(plan, sources, target, folder, overwrite=overwrite, progress=progress)
    if NO_CONTROLS in plan.notes:
        _LOG.warning("%s: %s", target, NO_CONTROLS)
    return Path(place) if isinstance(target, Path) else place


def _convert(
    plan: ConversionPlan,
    sources: GivenSources,
    target: Path | ObjectFolder,
    folder: Path,
    *,
    overwrite: bool,
    progress: Callable[[Progress], None] | bool | None,
) -> None:
    """Carry out a conversion."""
    plan.check_memory()
    n_held = held_bytes(target) if isinstance(target, Path) else 0
    _check_disk(plan, folder, n_held, holds_store=isinstance(target, Path))
    if plan.not_copied:  # before anything is written, so that nothing is left behind if warnings are errors
        warnings.warn(_not_copied_text(plan.not_copied), NotCopiedWarning, stacklevel=4)
    with contextlib.ExitStack() as stack:
        stack.callback(sources.forget)
        report = stack.enter_context(Bar()) if progress is None or progress is True else progress or None
        writer = stack.enter_context(_stage(plan, target, overwrite=overwrite, work_dir=folder))
        stack.enter_context(_explain_full_disk(writer))
        attrs = _write(writer, plan, report)
        sources.check_unchanged()
        writer.finalise(attrs)


def _make_plan(
    readers: list[ScreenReader], options: ConversionOptions, budget: Budget, obs: ObsTables | None
) -> ConversionPlan:
    """Join the tables onto the files, and plan the conversion."""
    joined = join_obs(readers, dataset_names(readers), obs)
    plan = make_plan(joined.readers, options, budget)
    plan.not_copied = [*dict.fromkeys(plan.not_copied + joined.not_copied)]
    plan.joined_digest, plan.n_joined, plan.joined_notes = joined.digest, joined.n_tables, joined.notes
    return plan


def _not_copied_text(lines: list[str]) -> str:
    """Summarise what a conversion leaves out."""
    shown = "; ".join(lines[:_SHOWN_LINES])
    n_more = len(lines) - _SHOWN_LINES
    more = f"; and {n_more:,} more, which the store's attrs['warnings'] list" if n_more > 0 else ""
    return f"{shown}{more}."


def _resolve_target(
    place: str, storage_options: Mapping[str, Any] | None, files: list[Path | RemoteFile]
) -> Path | ObjectFolder:
    """Return where to put the store, and refuse to replace a source file."""
    if is_url(place):
        url = require_plain_url("store", place.rstrip("/"))
        clash = next(
            (file for file in files if isinstance(file, RemoteFile) and f"{file.url}/".startswith(f"{url}/")), None
        )
        if clash is not None:
            raise _replaces_source(shown_url(url), str(clash))
        return remote_target(url, storage_options)
    target = Path(place).absolute()
    if target.is_symlink():  # the store replaces what the link points to, and the link stays
        target = target.resolve()
    resolved = target.resolve()
    for path in files:
        if isinstance(path, Path) and resolved in (path.resolve(), *path.resolve().parents):
            raise _replaces_source(str(target), str(path))
    return target


def _replaces_source(target: str, source: str) -> ConfigError:
    return ConfigError(
        f"store: got {target!r}, which is the source {source!r} or a folder that contains it. "
        "The store would replace it. Choose another path. Nothing was written."
    )


def _check_disk(plan: ConversionPlan, folder: Path, n_held: int, *, holds_store: bool) -> None:
    folder = next(path for path in (folder, *folder.parents) if path.exists())
    plan.check_disk(folder, shutil.disk_usage(folder).free, n_held, holds_store=holds_store)


def _stage(plan: ConversionPlan, target: Path | ObjectFolder, *, overwrite: bool, work_dir: Path) -> StoreWriter:
    """Open a writer in the target's staging directory, and log what it does with earlier work."""
    writer = StoreWriter(target, overwrite=overwrite, fingerprint=plan.fingerprint(), work_dir=work_dir)
    if writer.staging.is_resumed:
        _LOG.info("%s: resuming an interrupted conversion", target)
    elif writer.staging.is_restarted:
        _LOG.warning("%s: starting over, because the source or the options have changed", target)
    return writer


@contextlib.contextmanager
def _explain_full_disk(writer: StoreWriter) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(
            f"The disk of {str(writer.staging.target)!r} is full ({error.strerror}). No store was made. The finished "
            f"work is kept in {writer.staging.folder.name!r}: free some space and run the same conversion again to "
            "resume, or delete that folder."
        ) from error


def _write(writer: StoreWriter, plan: ConversionPlan, report: Report | None) -> dict[str, Any]:
    """Write everything except the root metadata; return the entries of its attribute ``lazypert``."""
    work = writer.staging.work / CELLS_FOLDER
    cells = arrange_cells(plan, work, report)
    plan.notes += plan.joined_notes
    job = ColumnJob(writer, cells.pieces, cells.destination, work / "columns", plan.budget.workers, report)
    for group in ("layers", "obsm", "obsp", "varm", "varp", "uns"):
        writer.group(group, {"encoding-type": "dict", "encoding-version": "0.1.0"})
    write_obs(job, plan, cells)
    writer.collect()
    cells.forget_names()
    write_var(writer, plan)
    release_memory()
    stats_plan = _plan_cell_stats(plan, cells.groups)
    summaries = write_matrices(writer, plan, cells, stats_plan, report)
    write_embeddings(writer, job, plan)
    writer.collect()
    write_obsm_frames(job, plan)
    write_elements(writer, plan.readers[0], plan.elements)
    write_column_names(writer, plan)
    write_tables(writer, cells.groups, cells)
    if stats_plan is not None:
        write_cell_stats(writer, cells.groups, cells, stats_plan, writer.staging.work / X_FOLDER)
    return _attributes(plan, cells.groups, summaries)


def _plan_cell_stats(plan: ConversionPlan, groups: Groups) -> CellStatsPlan | None:
    """Choose the cell statistics to collect; None if they would take too much memory."""
    stats_plan = CellStatsPlan.of(groups, plan.genes)
    if stats_plan.control_sums_bytes > plan.budget.limit // 8:
        plan.notes.append("control sums of all targets do not fit within the memory limit: QC will read the matrix")
        return None
    return stats_plan


def _attributes(plan: ConversionPlan, groups: Groups, summaries: dict[str, Any]) -> dict[str, Any]:
    return {
        "sources": [
            {"name": name, "file": reader.path.name, "n_obs": reader.n_obs, "size": size, "mtime_ns": mtime}
            for name, reader in zip(plan.dataset_names, plan.readers, strict=True)
            for size, mtime in [(None, None) if is_in_memory(reader) else source_stamp(reader.path)]
        ],
        "roles": plan.stored_roles.to_json(),
        "order": "grouped" if plan.is_grouped else "source",
        "layer": plan.options.layer,
        "n_obs": plan.n_obs,
        "n_vars": len(plan.genes),
        "matrices": summaries,
        "summary": {
            "n_groups": len(groups),
            "n_perturbations": len(groups.labels["perturbation"]),
            "n_cell_types": len(groups.labels["cell_type"]),
            "n_batches": len(groups.labels["batch"]),
            "n_controls": int(groups.sizes[groups.is_control].sum()),
            "n_unlabelled": groups.n_unlabelled,
            **({"n_conditions": len(groups.conditions)} if groups.roles.covariates else {}),
        },
        "warnings": plan.not_copied + plan.notes,
    }
