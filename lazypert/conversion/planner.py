"""Planning a conversion: every choice is made and checked before the first value is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazypert._internal.paths import is_entry_name
from lazypert._internal.unique_names import unique_names
from lazypert.conversion.kept_elements import choose_elements
from lazypert.conversion.notes import describe_not_copied, dropped_genes, features_beside_genes, var_differences
from lazypert.conversion.plan import ConversionPlan
from lazypert.converter import column_names, frames_in_obsm
from lazypert.errors import SourceFormatError, near_matches, no_such_column
from lazypert.screen.gene_alignment import align_genes, versions_apart
from lazypert.screen.roles import ROLE_OF_AXIS
from lazypert.store.format import RAW, matrix_name

if TYPE_CHECKING:
    import pandas as pd

    from lazypert._internal.memory import Budget
    from lazypert.conversion.plan import ConversionOptions
    from lazypert.converter import ScreenReader

# Where the files' X goes when a layer becomes X.
_X_AS_LAYER = "layers/X"


def make_plan(readers: list[ScreenReader], options: ConversionOptions, budget: Budget) -> ConversionPlan:
    """Plan the conversion of several files into one store.

    Raises
    ------
    ColumnNotFoundError
        If a column or a layer does not exist.
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
    _check_columns(readers, options)
    return ConversionPlan(
        readers=readers,
        options=options,
        budget=budget,
        dataset_names=names,
        matrices=matrices,
        embeddings=embeddings,
        genes=alignment.var,
        new_cols=[None if alignment.is_same else new_col for new_col in alignment.new_col],
        not_copied=[
            *dict.fromkeys(
                not_copied + matrices_not_copied + embeddings_not_copied + frames_not_copied + elements_not_copied
            )
        ],
        notes=features_beside_genes(readers, matrices),
        elements=kept,
        obsm_frames=obsm_frames,
    )


def dataset_names(readers: list[ScreenReader]) -> list[str]:
    """One name per file, from its stem; repeated names are numbered."""
    return list(unique_names(reader.path.name.split(".")[0] for reader in readers))


def _check_columns(readers: list[ScreenReader], options: ConversionOptions) -> None:
    """Raise `ColumnNotFoundError` if a file lacks a column of a role."""
    roles = options.roles
    columns = [(ROLE_OF_AXIS[axis], column) for axis, column in roles.columns().items() if axis != "dataset"]
    columns += [("control_col", options.control_col), *(("covariates", name) for name in roles.covariates)]
    for role, column in columns:
        for reader in readers:
            if column is not None and column not in reader.obs_columns:
                reason = next((f"{line}. " for line in reader.not_carried if line.startswith(f"obs/{column}: ")), "")
                raise no_such_column(
                    role,
                    column,
                    "an obs column",
                    reader.obs_columns,
                    of=reader.path,
                    hint=f"{reason}No store was made.",
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
