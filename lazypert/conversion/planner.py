"""Planning a conversion: every choice is made and checked before the first value is read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lazypert._internal.paths import is_entry_name
from lazypert._internal.unique_names import unique_names
from lazypert.conversion.kept_elements import choose_elements
from lazypert.conversion.notes import (
    NO_CONTROLS,
    describe_not_copied,
    dropped_genes,
    features_beside_genes,
    odd_labels,
    repeated_names,
    too_many_conditions,
    var_differences,
)
from lazypert.conversion.plan import ConversionPlan
from lazypert.conversion.reordered_values import READ_STEP, obs_column_reader
from lazypert.converter import column_names, frames_in_obsm
from lazypert.errors import SourceFormatError, near_matches, no_such_column
from lazypert.screen.cell_order import name_hashes
from lazypert.screen.cell_table import CellArrays
from lazypert.screen.conditions import Conditions
from lazypert.screen.control_column import marked_labels, marks_of
from lazypert.screen.gene_alignment import align_genes, versions_apart
from lazypert.screen.groups import Groups
from lazypert.screen.labels import factorise, unite
from lazypert.screen.renames import rename_labels
from lazypert.screen.roles import ROLE_OF_AXIS, missing_controls, no_such_control
from lazypert.store.format import RAW, matrix_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert._internal.memory import Budget
    from lazypert.conversion.plan import ConversionOptions
    from lazypert.converter import ScreenReader
    from lazypert.screen.roles import Roles

# Where the files' X goes when a layer becomes X.
_X_AS_LAYER = "layers/X"


def make_plan(readers: list[ScreenReader], options: ConversionOptions, budget: Budget) -> ConversionPlan:
    """Plan the conversion of several files into one store.

    Raises
    ------
    ColumnNotFoundError, LabelNotFoundError
        If a column, a layer or the control label does not exist.
    SourceFormatError
        If a file cannot be converted.
    """
    names = dataset_names(readers)
    not_copied = [describe_not_copied(reader, line) for reader in readers for line in reader.not_carried]
    matrices, matrices_not_copied = _choose_matrices(readers, options.layer)
    var_tables = [_var_table(reader, matrices) for reader in readers]
    alignment = align_genes(var_tables, names, options.join)
    not_copied += dropped_genes(var_tables, readers, alignment) + var_differences(var_tables, readers)
    if (apart := versions_apart(var_tables)) is not None:
        not_copied.append(apart)
    embeddings, embeddings_not_copied = _choose_embeddings(readers)
    obsm_frames, frames_not_copied = _choose_obsm_frames(readers)
    has_same_genes = alignment.is_same and not _is_raw_with_other_genes(readers, matrices)
    kept, elements_not_copied = choose_elements(
        readers, x=matrices["X"], has_same_genes=has_same_genes, memory_limit=budget.limit
    )
    codes, labels = _role_codes(readers, options.roles, names)
    options = _with_marked_controls(readers, options, codes["perturbation"], labels["perturbation"])
    hashes = _read_name_hashes(readers)
    notes = features_beside_genes(readers, matrices) + repeated_names(hashes, readers)
    covariates = {name: _read_role_column(readers, name, "covariates") for name in options.roles.covariates}
    for axis in ("perturbation", "cell_type"):
        notes += odd_labels(options.roles.columns()[axis] or axis, codes[axis], labels[axis])
    for name, (code, texts) in covariates.items():
        notes += odd_labels(name, code, texts)
    if options.roles.pert_col is not None and options.roles.control_pert is None:
        notes.append(NO_CONTROLS)
    conditions = Conditions.encode(covariates) if covariates else None
    groups = Groups.from_codes(codes, labels, options.roles, hashes, conditions=conditions)
    _require_controls(options.roles, labels["perturbation"].tolist())
    notes += too_many_conditions(groups)
    groups, source_row = _order_rows(groups, options)
    if groups.n_unlabelled:
        notes.append(f"{groups.n_unlabelled} cells have no cell type or no perturbation: they are in no group")
    return ConversionPlan(
        readers=readers,
        options=options,
        budget=budget,
        dataset_names=names,
        matrices=matrices,
        embeddings=embeddings,
        genes=alignment.var,
        new_cols=[None if alignment.is_same else new_col for new_col in alignment.new_col],
        groups=groups,
        source_row=source_row,
        not_copied=[
            *dict.fromkeys(
                not_copied + matrices_not_copied + embeddings_not_copied + frames_not_copied + elements_not_copied
            )
        ],
        notes=notes,
        elements=kept,
        obsm_frames=obsm_frames,
    )


def dataset_names(readers: list[ScreenReader]) -> list[str]:
    """One name per file, from its stem; repeated names are numbered."""
    return list(unique_names(reader.path.name.split(".")[0] for reader in readers))


def _order_rows(groups: Groups, options: ConversionOptions) -> tuple[Groups, NDArray[np.integer]]:
    """Return the groups of the store's rows, and the source row of each row."""
    dtype = np.dtype("i4" if groups.n_obs < 2**31 else "i8")
    source_row = np.arange(groups.n_obs, dtype=dtype)
    if options.order == "source" or not options.roles.has_columns or groups.row_order is None:
        return groups, source_row
    source_row = groups.row_order.astype(dtype, copy=False)
    batch = groups.cells.batch_codes()
    cells = CellArrays(None if batch is None else batch[source_row], groups.cells.hashes(source_row))
    return replace(groups, row_order=None, cells=cells), source_row


def _read_name_hashes(readers: list[ScreenReader]) -> NDArray[np.uint64]:
    """(n_obs,) name hashes of the cells of all files."""
    read = obs_column_reader(readers, None)
    n_obs = sum(reader.n_obs for reader in readers)
    parts = [name_hashes(read(start, min(n_obs, start + READ_STEP))) for start in range(0, n_obs, READ_STEP)]
    return np.concatenate([*parts, np.empty(0, np.uint64)])


def _role_codes(
    readers: list[ScreenReader], roles: Roles, names: list[str]
) -> tuple[dict[str, NDArray[np.int32] | None], dict[str, NDArray[np.str_]]]:
    """Return the codes of all cells (None without a column) and the labels of every axis."""
    codes: dict[str, NDArray[np.int32] | None] = {}
    labels: dict[str, NDArray[np.str_]] = {}
    for axis, column in roles.columns().items():
        codes[axis], labels[axis] = None, np.empty(0, dtype=np.str_)
        if column is not None and axis != "dataset":
            found = _read_role_column(readers, column, ROLE_OF_AXIS[axis])
            codes[axis], labels[axis] = rename_labels(*found, roles) if axis == "perturbation" else found
        elif column is not None:
            labels[axis] = np.array(sorted(names), dtype=np.str_)
            code_of_file = np.searchsorted(labels[axis], names)
            codes[axis] = np.repeat(code_of_file.astype(np.int32), [reader.n_obs for reader in readers])
    return codes, labels


def _with_marked_controls(
    readers: list[ScreenReader], options: ConversionOptions, codes: NDArray[np.int32] | None, labels: NDArray[np.str_]
) -> ConversionOptions:
    """Replace the column that marks controls by their labels."""
    column = options.control_col
    if column is None or codes is None:
        return options
    marks = marks_of(column, pd.Categorical.from_codes(*_read_role_column(readers, column, "control_col")))
    roles = replace(options.roles, control_pert=marked_labels(column, codes, labels, marks))
    return replace(options, roles=roles, control_col=None)


def _require_controls(roles: Roles, labels: list[str]) -> None:
    """Raise `LabelNotFoundError` if a control label occurs neither as a label nor as a part of one."""
    parts = [part for label in labels for part in label.split(roles.separator)] if roles.separator else []
    missing = missing_controls(roles, [*labels, *parts])
    if missing:
        raise no_such_control(missing[0], labels, roles.pert_col)


def _read_role_column(
    readers: list[ScreenReader], column: str, role: str
) -> tuple[NDArray[np.int32], NDArray[np.str_]]:
    for reader in readers:
        if column not in reader.obs_columns:
            reason = next((f"{line}. " for line in reader.not_carried if line.startswith(f"obs/{column}: ")), "")
            raise no_such_column(
                role, column, "an obs column", reader.obs_columns, of=reader.path, hint=f"{reason}No store was made."
            )
    return unite(
        [
            factorise(reader.obs_column(column, start, min(reader.n_obs, start + READ_STEP)))
            for reader in readers
            for start in range(0, max(1, reader.n_obs), READ_STEP)
        ]
    )


def _choose_matrices(readers: list[ScreenReader], layer: str | None) -> tuple[dict[str, str], list[str]]:
    """Return each matrix of the store with its name in the files, and warnings about the others."""
    common = [name for name in readers[0].matrices if all(name in reader.matrices for reader in readers)]
    warnings = [
        f"{reader.path.name}: {name} is not in every file and was not copied"
        for reader in readers
        for name in reader.matrices
        if name not in common
    ]
    x = matrix_name(layer, common)
    if any(x not in reader.matrices for reader in readers):
        raise _no_matrix(next(reader for reader in readers if x not in reader.matrices), layer)
    if x == RAW:
        common, other_genes = _without_other_genes(readers, common)
        warnings += other_genes
    _check_x_as_layer(readers, x, layer, common)
    _check_names(readers, [name for name in common if name != "X"])
    matrices = {"X": x} | {name: name for name in common if name not in ("X", x)}
    for name in [name for name in matrices if name.startswith("obsm/")]:
        if len({reader.matrices[name] for reader in readers}) > 1:
            del matrices[name]
            warnings.append(f"{name} was not copied: its width differs between the files")
        elif not _have_same_columns(readers, name):
            del matrices[name]
            warnings.append(f"{name} was not copied: its columns have other names in each file")
    if RAW in matrices and len(readers) > 1:
        first = readers[0].raw_var().index
        if not all(reader.raw_var().index.equals(first) for reader in readers[1:]):
            del matrices[RAW]
            warnings.append("raw was not copied: its genes differ between the files")
    if layer is not None and "X" in common:
        matrices[_X_AS_LAYER] = "X"
    return matrices, warnings


def _have_same_columns(readers: list[ScreenReader], name: str) -> bool:
    names = [column_names(reader, name) for reader in readers]
    return len({None if one is None else tuple(one) for one in names}) == 1


def _without_other_genes(readers: list[ScreenReader], names: list[str]) -> tuple[list[str], list[str]]:
    """Leave out X and the layers if raw, which becomes X, has other genes; return the rest, and notes about them."""
    if all(reader.raw_var().index.equals(reader.var().index) for reader in readers):
        return names, []
    over_var = [name for name in names if name == "X" or name.startswith("layers/")]
    notes = [f"{name} was not copied: raw becomes X, and its genes are not those of {name}" for name in over_var]
    notes.append("var was not copied: raw becomes X, and the store's var is that of raw")
    return [name for name in names if name not in over_var], notes


def _is_raw_with_other_genes(readers: list[ScreenReader], matrices: dict[str, str]) -> bool:
    """Whether the store's genes are those of raw and not those of var."""
    return matrices["X"] == RAW and not all(reader.raw_var().index.equals(reader.var().index) for reader in readers)


def _var_table(reader: ScreenReader, matrices: dict[str, str]) -> pd.DataFrame:
    """Return the var table of the store's X; raw keeps columns that only var has, if both have the same genes."""
    if matrices["X"] != RAW:
        return reader.var()
    raw, var = reader.raw_var(), reader.var()
    if not raw.index.equals(var.index):
        return raw
    others = [column for column in var.columns if column not in raw.columns]
    return raw.assign(**{str(column): var[column].array for column in others})


def _check_x_as_layer(readers: list[ScreenReader], x: str, layer: str | None, common: list[str]) -> None:
    if layer is not None and x != _X_AS_LAYER and {"X", _X_AS_LAYER} <= set(common):
        raise SourceFormatError(
            f"layer={layer!r} becomes X, and the file's X would become {_X_AS_LAYER!r}, but "
            f"{str(readers[0].path)!r} has a layer of that name. Rename the layer 'X' in the file. No store was made."
        )


def _choose_embeddings(readers: list[ScreenReader]) -> tuple[list[str], list[str]]:
    """Return the dense embeddings of the store, and warnings about the others."""
    names = list(dict.fromkeys(name for reader in readers for name in reader.obsm))
    common = [name for name in names if len({reader.obsm.get(name) for reader in readers}) == 1]
    _check_names(readers, [f"obsm/{name}" for name in common])
    warnings = [
        f"obsm/{name} was not copied: not in every file with the same width" for name in names if name not in common
    ]
    return common, warnings


def _choose_obsm_frames(readers: list[ScreenReader]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Return the columns of each table in obsm that every file has, and warnings about the others."""
    found = [frames_in_obsm(reader) for reader in readers]
    names = list(dict.fromkeys(name for frames in found for name in frames))
    common = {name: found[0][name] for name in names if len({frames.get(name) for frames in found}) == 1}
    _check_names(readers, [f"obsm/{name}" for name in common])
    warnings = [
        f"obsm/{name} was not copied: not in every file with the same columns" for name in names if name not in common
    ]
    return common, warnings


def _check_names(readers: list[ScreenReader], names: list[str]) -> None:
    for name in names:
        kind, _, rest = name.partition("/")
        if not is_entry_name(rest):
            raise SourceFormatError(
                f"{str(readers[0].path)!r} has {name!r}, and {rest!r} cannot be the name of a Zarr array. "
                f"Rename it in {kind}. No store was made."
            )


def _no_matrix(reader: ScreenReader, layer: str | None) -> Exception:
    layers = [name.removeprefix("layers/") for name in reader.matrices if name.startswith("layers/")]
    if layer is not None:
        layers += ["raw"] * (RAW in reader.matrices)
        return no_such_column("layer", layer, "a layer", layers, of=reader.path, hint="No store was made.")
    if RAW in reader.matrices and not layers:
        return SourceFormatError(
            f"{str(reader.path)!r} has no X, only raw. Use raw as X: layer='raw'. No store was made."
        )
    return SourceFormatError(
        f"{str(reader.path)!r} has no X. Name a layer to use instead (layer=...). "
        f"{near_matches('counts', layers)} No store was made."
    )
