"""Conversion: one pass over the source into sorted spills, one over the spills into shards."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import pandas as pd

from lazypert.converter import open_source
from lazypert.errors import ColumnNotFoundError, ConfigError, SourceFormatError, near_matches
from lazypert.genes import GeneAlignment, align_genes, check_join
from lazypert.groups import Groups
from lazypert.labels import factorise, join_columns, unite
from lazypert.memory import Budget
from lazypert.schema import TABLES, Grid, Roles, ValueFacts
from lazypert.shuffle import Spill, map_block, reduce_shard, row_lengths
from lazypert.writer import StoreWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from lazypert.converter import ScreenReader

DATASET = "dataset"
_GIVEN_ROLES = ("pert_col", "cell_type_col", "batch_col")
_SPILL = "__spill__"
_FIRST_FILE_X = "layers/X"
_RAW = "raw/X"


@dataclass
class _Plan:
    """What will be written where; decided before the first value is read."""

    readers: list[ScreenReader]
    names: list[str]
    roles: Roles
    budget: Budget
    matrices: dict[str, str]
    genes: pd.DataFrame
    new_cols: list[NDArray[np.int32] | None]
    groups: Groups
    source_row: NDArray[np.int64]
    warnings: list[str] = field(default_factory=list)

    @property
    def n_obs(self) -> int:
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
        roles, named = self.roles, self.columns
        renamed = {role: named[getattr(roles, role)] for role in _GIVEN_ROLES if getattr(roles, role) is not None}
        return replace(roles, **renamed)

    @property
    def first_rows(self) -> list[int]:
        return np.cumsum([0, *(reader.n_obs for reader in self.readers)])[:-1].tolist()


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
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Convert a screen, or several, into one lazypert store.

    The store is also a valid AnnData Zarr v3 store. Either it is complete or there is none: until
    the last step everything lies in ``<store>.partial-<id>``, which a failure removes.

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
        Bytes, or text like ``"1GiB"``, that the conversion may use over what the imports take.
    overwrite
        Replace an existing store, once the new one is complete.
    join
        Genes of several files, aligned by name: ``"inner"`` keeps those that every file measured,
        ``"outer"`` keeps all, zero where a file lacks them (obs column ``dataset`` and var columns
        ``measured_in_<dataset>`` tell these zeros from measured ones).
    progress
        Called with (phase, tasks done, tasks in all).

    Returns
    -------
    The store's path.

    Raises
    ------
    StoreExistsError
        When `store` exists and `overwrite` is False.
    SourceFormatError
        When a file is not what it should be.
    ColumnNotFoundError, LabelNotFoundError
        When a column or the control label does not occur.

    Examples
    --------
    >>> import lazypert as lp
    >>> from lazypert.simulate import reference_screen
    >>> path = reference_screen("screen.h5ad")  # doctest: +SKIP
    >>> lp.convert(path, "screen.zarr", pert_col="perturbation", control_pert="non-targeting",
    ...            cell_type_col="cell_type", batch_col="batch")  # doctest: +SKIP
    """
    if order not in ("grouped", "source"):
        raise ConfigError(f"order: got {order!r}, expected 'grouped' or 'source'.")
    check_join(join)
    budget = Budget.of(memory_limit)
    paths = [Path(p) for p in ([source] if isinstance(source, str | Path) else source)]
    if not paths:
        raise ConfigError("source: got an empty list, expected at least one file.")
    _check_target(paths, store)
    roles = Roles(
        pert_col=pert_col,
        cell_type_col=cell_type_col,
        batch_col=batch_col,
        dataset_col=DATASET if len(paths) > 1 else None,
        control_pert=control_pert,
    )
    with StoreWriter(store, overwrite=overwrite) as writer:
        plan = _make_plan([open_source(path) for path in paths], roles, layer, order, seed, join, budget)
        spill = writer.root / _SPILL
        spill.mkdir()
        np.save(spill / "destination.npy", _inverse(plan.source_row))
        for group in ("layers", "obsm", "obsp", "varm", "varp", "uns"):
            writer.group(group, {"encoding-type": "dict", "encoding-version": "0.1.0"})
        _write_obs(writer, plan)
        _write_var(writer, plan)
        summary = {
            name: _write_matrix(writer, plan, name, origin, spill, progress) for name, origin in plan.matrices.items()
        }
        _write_obsm(writer, plan)
        _write_tables(writer, plan)
        shutil.rmtree(spill)
        return writer.finalise(
            {
                "sources": [
                    {
                        "name": name,
                        "file": reader.path.name,
                        "n_obs": reader.n_obs,
                        "size": (stat := reader.path.stat()).st_size,
                        "mtime_ns": stat.st_mtime_ns,
                    }
                    for name, reader in zip(plan.names, plan.readers, strict=True)
                ],
                "roles": plan.stored_roles.to_json(),
                "order": order if any(roles.columns()) else "source",
                "seed": seed,
                "layer": layer,
                "n_obs": plan.n_obs,
                "n_vars": len(plan.genes),
                "matrices": summary,
                "summary": {
                    "n_groups": len(plan.groups),
                    "n_perturbations": len(plan.groups.labels["perturbation"]),
                    "n_cell_types": len(plan.groups.labels["cell_type"]),
                    "n_batches": len(plan.groups.labels["batch"]),
                    "n_controls": int(plan.groups.sizes[plan.groups.is_control].sum()),
                    "n_unlabelled": plan.groups.n_unlabelled,
                },
                "warnings": plan.warnings,
            }
        )


def _check_target(paths: list[Path], store: str | Path) -> None:
    """Overwriting must not reach the source."""
    target = Path(store).resolve()
    for path in paths:
        if target in (path.resolve(), *path.resolve().parents):
            raise ConfigError(
                f"store: {str(store)!r} is the source {str(path)!r}, or a folder that the source is inside. "
                "The store would replace it. Choose another target; nothing was written."
            )


def _make_plan(
    readers: list[ScreenReader],
    roles: Roles,
    layer: str | None,
    order: str,
    seed: int,
    join: str,
    budget: Budget,
) -> _Plan:
    names = _dataset_names(readers)
    warnings = [f"{r.path.name}: {what}" for r in readers for what in r.not_carried]
    frames = [reader.var() for reader in readers]
    aligned = align_genes(frames, names, join)
    notes = _left_out(frames, readers, aligned)
    codes, labels = _role_codes(readers, roles)
    groups = Groups.from_codes(codes, labels, roles, sum(r.n_obs for r in readers))
    _ = groups.control_code  # an unknown control label stops here
    if order == "grouped" and any(roles.columns()):
        source_row = np.asarray(groups.shuffled(seed).order, dtype=np.int64)
        groups = replace(groups, order=None)
    else:
        source_row = np.arange(groups.n_obs)
    if groups.n_unlabelled:
        notes.append(f"{groups.n_unlabelled} cells have no cell type or no perturbation: they are in no group")
    matrices, more = _matrices(readers, layer)
    return _Plan(
        readers=readers,
        names=names,
        roles=roles,
        budget=budget,
        matrices=matrices,
        genes=aligned.var,
        new_cols=[None if aligned.is_same else new_col for new_col in aligned.new_col],
        groups=groups,
        source_row=source_row,
        warnings=warnings + notes + more,
    )


def _dataset_names(readers: list[ScreenReader]) -> list[str]:
    names: list[str] = []
    for reader in readers:
        name, n = reader.path.name.split(".")[0], 2
        while name in names:
            name, n = f"{reader.path.name.split('.')[0]}_{n}", n + 1
        names.append(name)
    return names


def _role_codes(
    readers: list[ScreenReader], roles: Roles
) -> tuple[list[NDArray[np.int32] | None], list[NDArray[np.str_]]]:
    codes: list[NDArray[np.int32] | None] = []
    labels: list[NDArray[np.str_]] = []
    for column, role in zip(roles.columns(), ("cell_type_col", "pert_col", "", "batch_col"), strict=True):
        code, names = None, np.empty(0, dtype=np.str_)
        if column is not None and role:
            for reader in readers:
                if column not in reader.obs_columns:
                    raise ColumnNotFoundError(
                        f"{role}={column!r} is not an obs column of {str(reader.path)!r}. "
                        f"{near_matches(column, reader.obs_columns)} No store was made."
                    )
            code, names = unite([factorise(reader.obs_column(column)) for reader in readers])
        elif column is not None:
            names = np.array(sorted(_dataset_names(readers)), dtype=np.str_)
            number = np.searchsorted(names, _dataset_names(readers))
            code = np.repeat(number.astype(np.int32), [reader.n_obs for reader in readers])
        codes.append(code)
        labels.append(names)
    return codes, labels


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
            known = [name.removeprefix("layers/") for name in reader.matrices if name.startswith("layers/")]
            if layer is not None:
                raise ColumnNotFoundError(
                    f"layer={layer!r} is not in {str(reader.path)!r}. {near_matches(layer, known)}"
                )
            raise SourceFormatError(
                f"{str(reader.path)!r} has no X. Name a layer to use instead (layer=...). "
                f"{near_matches('counts', known)} No store was made."
            )
    if layer is not None and x != _FIRST_FILE_X and {"X", _FIRST_FILE_X} <= set(common):
        raise SourceFormatError(
            f"layer={layer!r} becomes X, and the file's X would become {_FIRST_FILE_X!r}, but "
            f"{str(readers[0].path)!r} has a layer of that name. Rename the layer 'X' in the file. No store was made."
        )
    matrices = {"X": x} | {name: name for name in common if name not in ("X", x)}
    for name in [name for name in matrices if name.startswith("obsm/")]:
        if len({reader.matrices[name] for reader in readers}) > 1:
            del matrices[name]
            notes.append(f"{name}: its width differs between the files, left out")
    if _RAW in matrices and len(readers) > 1:
        first = readers[0].raw_var().index
        if not all(reader.raw_var().index.equals(first) for reader in readers[1:]):
            del matrices[_RAW]
            notes.append("raw: its genes differ between the files, left out")
    if layer is not None and "X" in common:
        matrices[_FIRST_FILE_X] = "X"
    return matrices, notes


def _inverse(source_row: NDArray[np.int64]) -> NDArray[np.int64]:
    destination = np.empty_like(source_row)
    destination[source_row] = np.arange(len(source_row))
    return destination


def _write_matrix(
    writer: StoreWriter,
    plan: _Plan,
    name: str,
    origin: str,
    spill: Path,
    progress: Callable[[str, int, int], None] | None,
) -> dict[str, Any]:
    has_genes = name == "X" or name.startswith("layers/")
    n_cols = len(plan.genes) if has_genes else plan.readers[0].matrices[origin]
    # A map task holds its block as read, sorted, and narrowed: about four times the block's bytes.
    tasks = [
        (reader, spec, first, new_col if has_genes else None)
        for reader, first, new_col in zip(plan.readers, plan.first_rows, plan.new_cols, strict=True)
        for spec in reader.blocks(origin, plan.budget.per_task // 5)
    ]
    mapped = dask.delayed(map_block, pure=False)
    spills: list[Spill] = _run(
        [
            mapped(reader, spec, spill / "destination.npy", first, new_col, n_cols, spill / f"{i:06d}.spill")
            for i, (reader, spec, first, new_col) in enumerate(tasks)
        ],
        plan.budget,
        f"{name}: reading and sorting",
        progress,
    )
    facts = ValueFacts()
    for one in spills:
        facts = facts.merge(one.facts)
    indptr = np.concatenate([[0], np.cumsum(row_lengths(spills, plan.n_obs))]).astype(np.int64)
    np.save(spill / "indptr.npy", indptr)
    nnz = int(indptr[-1])
    index_dtype = "i4" if nnz < 2**31 else "i8"
    attrs = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [plan.n_obs, n_cols]}
    writer.group(name, attrs)
    data = writer.template(f"{name}/data", facts.dtype(), Grid.matrix(nnz))
    indices = writer.template(f"{name}/indices", index_dtype, Grid.matrix(nnz))
    reduced = dask.delayed(reduce_shard, pure=False)
    shards = [reduced(data, indices, spill / "indptr.npy", spills, k) for k in range(data.grid.n_shards)]
    for entries in _run(shards, plan.budget, f"{name}: writing shards", progress):
        writer.add(entries)
    writer.array(f"{name}/indptr", indptr.astype(index_dtype))
    for one in spills:
        one.path.unlink()
    total = math.fsum(one.total for one in spills)
    return {
        "n_cols": n_cols,
        "nnz": nnz,
        "sum": total if math.isfinite(total) else None,
        "integral": facts.integral,
        "minimum": facts.minimum,
        "maximum": facts.maximum,
        "n_nonfinite": facts.n_nonfinite,
    }


def _run(tasks: list[Any], budget: Budget, phase: str, progress: Callable[[str, int, int], None] | None) -> list[Any]:
    """Compute tasks on the scheduler the caller has set up, else on threads within the budget."""
    from dask.callbacks import Callback

    done = 0

    def count(*_: Any) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(phase, min(done, len(tasks)), len(tasks))

    given = dask.base.get_scheduler() is not None
    options: dict[str, Any] = {} if given else {"scheduler": "threads", "num_workers": budget.workers}
    with Callback(posttask=count):
        return list(dask.compute(*tasks, optimize_graph=False, **options))


def _write_obs(writer: StoreWriter, plan: _Plan) -> None:
    several, columns = len(plan.readers) > 1, plan.columns
    index = np.concatenate([reader.obs_names() for reader in plan.readers])
    written = [*([DATASET] if several else []), *columns.values()]
    writer.frame("obs", index[plan.source_row], written)
    del index
    for name, stored in columns.items():
        values = _joined_column(plan.readers, name)
        writer.column("obs", stored, values[plan.source_row])
    if several:
        codes = np.repeat(np.arange(len(plan.names)), [reader.n_obs for reader in plan.readers])
        writer.column("obs", DATASET, pd.Categorical.from_codes(codes[plan.source_row], plan.names))


def _joined_column(readers: list[ScreenReader], name: str) -> Any:
    """Join one obs column of all files; cells of a file that lacks it have no value there."""
    if len(readers) == 1:
        return readers[0].obs_column(name)
    parts = [reader.obs_column(name) if name in reader.obs_columns else None for reader in readers]
    return join_columns(parts, [reader.n_obs for reader in readers])


def _write_var(writer: StoreWriter, plan: _Plan) -> None:
    _write_frame(writer, "var", plan.genes)
    if _RAW in plan.matrices:
        writer.group("raw", {"encoding-type": "raw", "encoding-version": "0.1.0"})
        writer.group("raw/varm", {"encoding-type": "dict", "encoding-version": "0.1.0"})
        _write_frame(writer, "raw/var", plan.readers[0].raw_var())


def _write_frame(writer: StoreWriter, path: str, frame: pd.DataFrame) -> None:
    writer.frame(path, frame.index.astype(str).to_numpy(dtype=object), [str(c) for c in frame.columns])
    for name in frame.columns:
        writer.column(path, str(name), frame[name])


def _write_obsm(writer: StoreWriter, plan: _Plan) -> None:
    first = plan.readers[0].obsm
    for name, width in first.items():
        if any(reader.obsm.get(name) != width for reader in plan.readers):
            plan.warnings.append(f"obsm/{name}: not in every file with the same width, left out")
            continue
        rows = np.concatenate([r.read_obsm(name, 0, r.n_obs) for r in plan.readers])
        array = writer.dense(f"obsm/{name}", rows.shape, rows.dtype.newbyteorder("="))
        step = array.chunks[0]
        for start in range(0, plan.n_obs, step):
            array[start : start + step] = rows[plan.source_row[start : start + step]]


def _write_tables(writer: StoreWriter, plan: _Plan) -> None:
    groups = plan.groups
    small = "i4" if plan.n_obs < 2**31 else "i8"
    writer.group(TABLES, {})
    writer.array(f"{TABLES}/source_row", plan.source_row.astype(small))
    if groups.order is not None:
        writer.array(f"{TABLES}/order", groups.order.astype(small))
    writer.array(f"{TABLES}/runs/start", groups.start)
    writer.array(f"{TABLES}/runs/stop", groups.stop)
    for axis, codes in groups.codes.items():
        writer.array(f"{TABLES}/runs/{axis}", codes)
        writer.strings(f"{TABLES}/labels/{axis}", groups.labels[axis].astype(object))
