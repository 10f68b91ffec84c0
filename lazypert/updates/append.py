"""Appending the cells of further files to a finished store."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.unique_names import unique_names
from lazypert._internal.validation import named_options, require, require_choice
from lazypert.conversion.convert import convert
from lazypert.conversion.plan import DATASET
from lazypert.errors import ConfigError, LabelNotFoundError
from lazypert.store.added import ADDED
from lazypert.store.format import APPENDED, APPENDED_VERSION, group_tables
from lazypert.store.replaced import Version
from lazypert.store.store import Store
from lazypert.updates.append_checks import GeneRule, new_columns, require_fitting
from lazypert.updates.appended_array import append_rows
from lazypert.updates.appended_columns import Splice, append_datasets, append_frame, write_datasets
from lazypert.updates.appended_matrix import append_matrix, new_rows
from lazypert.updates.appended_tables import AppendedCellStats, has_same_targets, join_groups, write_appended_tables
from lazypert.updates.store_update import StoreUpdate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from lazypert.conversion.given_sources import Source
    from lazypert.conversion.joined_obs import ObsTables
    from lazypert.progress import Progress
    from lazypert.screen.groups import Groups


@named_options
def append(
    store: str | Path,
    more: Source | Sequence[Source],
    *,
    dataset: str | None = None,
    genes: GeneRule = "same",
    memory_limit: int | str = "1GiB",
    obs: ObsTables | None = None,
    progress: Callable[[Progress], None] | bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
    source_storage_options: Mapping[str, Any] | None = None,
    work_dir: str | Path | None = None,
) -> None:
    """Append the cells of further files to a store, without writing again what it holds.

    The files are converted with the options of the store, its roles, layer and order, and their cells become its last
    rows. Groups, splits, pools and samples are those of a store that is converted from all files at once: a group has
    its old and its new cells, in the order of the hash of their names. Readers see the new version in one step.
    Datasets, sources and loaders that are open go on with the version that they opened.

    Beside what `convert` takes for the new files, memory holds 100 bytes per cell of the whole store.

    Parameters
    ----------
    store
        A store: a local folder or a URL.
    more
        A file or an AnnData, or a list of them, as for `convert`. They need the obs columns of the store's roles, and
        its layers, embeddings and other matrices of cells. Other obs columns may be missing on either side.
    dataset
        Name of the new cells in the obs column ``dataset``, which may be that of cells of the store. None takes the
        stem of each file, numbered if the store has it already. A store without this column gets it, with the stem of
        its own file.
    genes
        ``"same"``: the files must have the genes of the store, in any order. ``"store"``: genes that the store
        lacks are left out, and those that a file lacks are zeros.
    memory_limit, obs, progress, storage_options, source_storage_options, work_dir
        As for `convert`.

    Raises
    ------
    ConfigError
        If genes, matrices or columns do not fit the store, or cells are in it already; otherwise as in `add_obs`.
    SourceFormatError, ColumnNotFoundError, LabelNotFoundError
        As in `convert`.
    MachineError
        If another process writes to the store, or object storage does not answer.
    DiskFullError
        If the new cells do not fit on the disk. The store is as it was.

    Examples
    --------
    >>> import lazypert as lp
    >>> lp.append("screen.zarr", "second_run.h5ad")  # doctest: +SKIP
    """
    name: Any = dataset
    require(name is None or (isinstance(name, str) and name != ""), "dataset", name, "text, or None")
    require_choice("genes", genes, GeneRule)
    with StoreUpdate(store, storage_options, work_dir) as update:
        old = update.store
        _require_no_own_dataset(old)
        update.start()
        of_sources = storage_options if source_storage_options is None else source_storage_options
        options = {"memory_limit": memory_limit, "obs": obs, "progress": progress, "storage_options": of_sources}
        new = _convert_like(old, more, update.work / "new.zarr", options)
        new_col = require_fitting(old, new, genes)
        if new.n_obs == 0:
            return
        splice = Splice(old, new, update.writer, update.read)
        update.publish_version(_append(splice, new_col, dataset))


def _require_no_own_dataset(old: Store) -> None:
    if old.roles.dataset_col is None and DATASET in old.obs_columns:
        raise ConfigError(
            f"store: got an obs column {DATASET!r} that came with its file, and appending needs a column of this name "
            "for the file of each cell. Convert all files together. Nothing was changed."
        )


def _convert_like(old: Store, more: Any, target: Path, options: dict[str, Any]) -> Store:
    """Convert files with the options of a store; they need not have all of its controls."""
    roles = old.roles
    controls = list(roles.controls)
    while True:
        try:
            convert(
                more,
                target,
                pert_col=roles.pert_col,
                control_pert=controls or None,
                separator=roles.separator,
                rename_perturbations=old.attrs["roles"].get("rename_perturbations"),
                cell_type_col=roles.cell_type_col,
                batch_col=roles.batch_col,
                covariates=roles.covariates,
                layer=old.attrs["layer"],
                order="source" if old.attrs["order"] == "source" else "grouped",
                **options,
            )
        except LabelNotFoundError as error:
            absent = [label for label in controls if f"got {label!r}" in str(error)]
            if not absent:
                raise
            controls.remove(absent[0])
        else:
            return Store(target)


def _append(splice: Splice, new_col: NDArray[np.int32] | None, dataset: str | None) -> dict[str, Any]:
    """Write everything but the root metadata; return the entries of its attribute ``lazypert``."""
    old, new = splice.old, splice.new
    roles = replace(old.roles, dataset_col=old.roles.dataset_col or DATASET)
    names, of_cell = _new_datasets(old, new, dataset)
    known = _old_datasets(old)
    labels = np.unique(np.array([*known[0], *names], dtype=object).astype(str))
    codes = [np.searchsorted(labels, part.astype(str))[of] for part, of in (known, (names, of_cell))]
    groups = join_groups(old.groups, new.groups, roles, (labels, np.concatenate(codes).astype(np.int32)))
    base = group_tables(len(old.appended) + 1)
    write_appended_tables(splice, groups, base, sum(source["n_obs"] for source in old.attrs["sources"]))
    summaries, rewritten = _append_matrices(splice, groups, new_col, base)
    rewritten += append_frame(splice, "obs", new_columns(old, new))
    if old.roles.dataset_col is None:
        write_datasets(splice, DATASET, list(known[0]), names, of_cell)
    else:
        rewritten += append_datasets(splice, roles.dataset_col or DATASET, names, of_cell)
    for name, embedding in new.obsm.items():
        append_rows(splice.writer.root / "obsm" / name, embedding, splice.read)
    for name, columns in old.obsm_frames.items():
        rewritten += append_frame(splice, f"obsm/{name}", {column: column for column in columns})
    return _attributes(splice, groups, summaries, list(names), rewritten)


def _append_matrices(
    splice: Splice, groups: Groups, new_col: NDArray[np.int32] | None, base: str
) -> tuple[dict[str, Any], list[str]]:
    old, new = splice.old, splice.new
    summaries, rewritten = {}, list[str]()
    stats = AppendedCellStats(splice, groups) if has_same_targets(groups, splice) else None
    for name in old.matrices:
        n_cols = old.attrs["matrices"][name]["n_cols"]
        has_genes = name == "X" or name.startswith("layers/")
        blocks = new_rows(new.open_matrix(name), new_col if has_genes else None, n_cols)
        if name == "X" and stats is not None:
            blocks = stats.watch(blocks)
        summaries[name], paths = append_matrix(splice, name, blocks)
        rewritten += paths
    if stats is not None:
        stats.write(base)
    return summaries, rewritten


def _old_datasets(old: Store) -> tuple[NDArray[Any], NDArray[np.integer]]:
    """Names of the datasets of a store, and the number of each cell's."""
    if old.roles.dataset_col is None:
        return np.array([old.attrs["sources"][0]["name"]], object), np.zeros(old.n_obs, np.int32)
    return old.groups.labels["dataset"].astype(object), old.groups.expand(old.groups.codes["dataset"])


def _new_datasets(old: Store, new: Store, dataset: str | None) -> tuple[NDArray[Any], NDArray[np.integer]]:
    """Names of the datasets of the new cells, and the number of each cell's."""
    if dataset is not None:
        return np.array([dataset], object), np.zeros(new.n_obs, np.int32)
    names, of_cell = _old_datasets(new)
    known = [str(name) for name in _old_datasets(old)[0]]
    unique = list(unique_names([*known, *map(str, names)]))[len(known) :]
    return np.array(unique, object), of_cell


def _attributes(
    splice: Splice, groups: Groups, summaries: dict[str, Any], names: list[Any], rewritten: list[str]
) -> dict[str, Any]:
    old, new = splice.old, splice.new
    known = [source["name"] for source in old.attrs["sources"]]
    unique = list(unique_names([*known, *(source["name"] for source in new.attrs["sources"])]))[len(known) :]
    sources = [{**source, "name": name} for source, name in zip(new.attrs["sources"], unique, strict=True)]
    version = Version.of(old.attrs)
    record = {
        "first_row": old.n_obs,
        "n_obs": new.n_obs,
        "sources": unique,
        "datasets": [str(name) for name in names],
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "rewritten": rewritten,
        "before": {
            "conversion": version.conversion,
            "manifest_digest": version.manifest,
            ADDED: dict(version.added),
            "content_digest": old.content_digest,
        },
    }
    summary = {
        "n_groups": len(groups),
        "n_perturbations": len(groups.labels["perturbation"]),
        "n_cell_types": len(groups.labels["cell_type"]),
        "n_batches": len(groups.labels["batch"]),
        "n_controls": int(groups.sizes[groups.is_control].sum()),
        "n_unlabelled": groups.n_unlabelled,
        **({"n_conditions": len(groups.conditions)} if groups.roles.covariates else {}),
    }
    warnings = [*old.attrs["warnings"], *(line for line in new.attrs["warnings"] if line not in old.attrs["warnings"])]
    return {
        **{name: value for name, value in old.attrs.items() if name != ADDED},
        "format_version": APPENDED_VERSION,
        "sources": [*old.attrs["sources"], *sources],
        "roles": groups.roles.to_json(),
        "order": "source" if old.attrs["order"] == "source" else APPENDED,
        "n_obs": old.n_obs + new.n_obs,
        "matrices": summaries,
        "summary": summary,
        "warnings": warnings,
        APPENDED: [*old.appended, record],
    }
