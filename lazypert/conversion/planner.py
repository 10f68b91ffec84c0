"""Planning a conversion: every choice is made and checked before the first value is read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lazypert._internal.unique_names import unique_names
from lazypert.conversion.plan import DATASET, ConversionPlan
from lazypert.conversion.reordered_values import READ_STEP, obs_column_reader
from lazypert.converter import column_names
from lazypert.errors import SourceFormatError, near_matches, no_such_column
from lazypert.screen.cell_order import name_hashes
from lazypert.screen.cell_table import CellArrays
from lazypert.screen.conditions import Conditions
from lazypert.screen.control_column import marked_labels, marks_of
from lazypert.screen.gene_alignment import GeneAlignment, align_genes
from lazypert.screen.groups import Groups
from lazypert.screen.label_checks import suspicious_labels
from lazypert.screen.labels import factorise, unite
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
    not_copied = [_not_copied(reader, line) for reader in readers for line in reader.not_carried]
    matrices, matrices_not_copied = _choose_matrices(readers, options.layer)
    var_tables = [_var_table(reader, matrices) for reader in readers]
    alignment = align_genes(var_tables, names, options.join)
    not_copied += _dropped_genes(var_tables, readers, alignment) + _var_differences(var_tables, readers)
    embeddings, embeddings_not_copied = _choose_embeddings(readers)
    codes, labels = _role_codes(readers, options.roles, names)
    options = _with_marked_controls(readers, options, codes["perturbation"], labels["perturbation"])
    hashes = _read_name_hashes(readers)
    notes = _features_beside_genes(readers, matrices) + repeated_names(hashes, readers)
    covariates = {name: _read_role_column(readers, name, "covariates") for name in options.roles.covariates}
    for axis in ("perturbation", "cell_type"):
        notes += _odd_labels(options.roles.columns()[axis] or axis, codes[axis], labels[axis])
    for name, (code, texts) in covariates.items():
        notes += _odd_labels(name, code, texts)
    conditions = Conditions.encode(covariates) if covariates else None
    groups = Groups.from_codes(codes, labels, options.roles, hashes, conditions=conditions)
    _require_controls(options.roles, labels["perturbation"].tolist())
    notes += _too_many_conditions(groups)
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
        not_copied=[*dict.fromkeys(not_copied + matrices_not_copied + embeddings_not_copied)],
        notes=notes,
    )


def _not_copied(reader: ScreenReader, line: str) -> str:
    """Turn ``"<path inside the file>: <reason>"`` into a sentence."""
    where, _, reason = line.partition(": ")
    return f"{reader.path.name}: {where} was not copied: {reason}"


def _features_beside_genes(readers: list[ScreenReader], matrices: dict[str, str]) -> list[str]:
    """Notes about features that are not genes, such as guides: they are counted in the same cells as the genes."""
    return [
        f"{len(names):,} features are not genes: they are in {name}, and their names in uns/obsm_columns"
        for name in matrices
        if (names := column_names(readers[0], name)) is not None
    ]


def _odd_labels(column: str, codes: NDArray[np.int32] | None, labels: NDArray[np.str_]) -> list[str]:
    """Notes about labels that look like mistakes."""
    if codes is None:
        return []
    n_cells = np.bincount(codes[codes >= 0], minlength=len(labels)).tolist()
    return [*suspicious_labels(column, labels.tolist(), n_cells)]


def _too_many_conditions(groups: Groups) -> list[str]:
    """Note covariates that leave most cells without another cell of their group."""
    names, n_cells = groups.roles.covariates, groups.n_obs - groups.n_unlabelled
    if not names or 2 * len(groups) <= n_cells:
        return []
    return [
        f"covariates: {', '.join(names)} divide {n_cells:,} cells into {len(groups):,} groups: a measured value is no "
        "condition"
    ]


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


def repeated_names(hashes: NDArray[np.uint64], readers: list[ScreenReader]) -> list[str]:
    """Return notes about cell names that occur more than once, in a file or in several.

    Parameters
    ----------
    hashes
        (n_obs,) name hashes of the cells of all files.
    """
    notes, distinct, first = [], [], 0
    for reader in readers:
        names = np.unique(hashes[first : first + reader.n_obs])
        first += reader.n_obs
        distinct.append(names)
        if n_repeats := reader.n_obs - len(names):
            notes.append(
                f"{reader.path.name}: {n_repeats:,} cells have the name of an earlier cell of the file: "
                "a name does not tell which cell it is"
            )
    if len(readers) > 1:
        names, n_files = np.unique(np.concatenate(distinct), return_counts=True)
        if n_shared := int((n_files > 1).sum()):
            notes.append(
                f"{n_shared:,} cell names occur in more than one file: only {DATASET} and name together tell which "
                "cell it is"
            )
    return notes


def _role_codes(
    readers: list[ScreenReader], roles: Roles, names: list[str]
) -> tuple[dict[str, NDArray[np.int32] | None], dict[str, NDArray[np.str_]]]:
    """Return the codes of all cells (None without a column) and the labels of every axis."""
    codes: dict[str, NDArray[np.int32] | None] = {}
    labels: dict[str, NDArray[np.str_]] = {}
    for axis, column in roles.columns().items():
        codes[axis], labels[axis] = None, np.empty(0, dtype=np.str_)
        if column is not None and axis != "dataset":
            codes[axis], labels[axis] = _read_role_column(readers, column, ROLE_OF_AXIS[axis])
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


def _check_names(readers: list[ScreenReader], names: list[str]) -> None:
    for name in names:
        kind, _, rest = name.partition("/")
        if rest in ("", ".", "..", "zarr.json") or "/" in rest:
            raise SourceFormatError(
                f"{str(readers[0].path)!r} has {name!r}, and {rest!r} cannot be the name of a Zarr array. "
                f"Rename it in {kind}. No store was made."
            )


def _dropped_genes(var_tables: list[pd.DataFrame], readers: list[ScreenReader], alignment: GeneAlignment) -> list[str]:
    """Warnings about genes that the store does not keep."""
    return [
        f"{reader.path.name}: {n_dropped} of {len(var)} genes are not in every file and were not copied"
        for reader, var, new_col in zip(readers, var_tables, alignment.new_col, strict=True)
        if (n_dropped := int((new_col < 0).sum()))
    ]


def _var_differences(var_tables: list[pd.DataFrame], readers: list[ScreenReader]) -> list[str]:
    """Warnings about var columns of later files that the store does not keep."""
    first, warnings = var_tables[0], []
    for var, reader in zip(var_tables[1:], readers[1:], strict=True):
        for column in var.columns:
            if column not in first.columns:
                warnings.append(
                    f"{reader.path.name}: var column {column!r} is not in the first file and was not copied"
                )
            elif var.index.equals(first.index) and not var[column].equals(first[column]):
                warnings.append(
                    f"{reader.path.name}: var column {column!r} was not copied: it differs from the first file's, "
                    "which is kept"
                )
    return warnings


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
