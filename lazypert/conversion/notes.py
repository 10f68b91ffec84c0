"""Notes about a conversion: what looks like a mistake in the files, and what the store does not keep."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazypert.conversion.plan import DATASET
from lazypert.converter import column_names
from lazypert.screen.label_checks import suspicious_labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from lazypert.converter import ScreenReader
    from lazypert.screen.gene_alignment import GeneAlignment
    from lazypert.screen.groups import Groups

NO_CONTROLS = (
    "no controls were named (control_pert or control_col): control matching and knockdown QC need them, and have to be "
    "given their labels"
)
"""Note about a store that has perturbations, and whose controls are not known."""


def describe_not_copied(reader: ScreenReader, line: str) -> str:
    """Turn ``"<path inside the file>: <reason>"`` into a sentence."""
    where, _, reason = line.partition(": ")
    return f"{reader.path.name}: {where} was not copied: {reason}"


def features_beside_genes(readers: list[ScreenReader], matrices: dict[str, str]) -> list[str]:
    """Notes about features that are not genes, such as guides: they are counted in the same cells as the genes."""
    return [
        f"{len(names):,} features are not genes: they are in {name}, and their names in uns/obsm_columns"
        for name in matrices
        if (names := column_names(readers[0], name)) is not None
    ]


def odd_labels(column: str, labels: NDArray[np.str_], n_cells: NDArray[np.integer]) -> list[str]:
    """Notes about labels that look like mistakes; `n_cells` are the (n_labels,) cells of each."""
    return list(suspicious_labels(column, labels.tolist(), n_cells.tolist()))


def too_many_conditions(groups: Groups) -> list[str]:
    """Note covariates that leave most cells without another cell of their group."""
    names, n_cells = groups.roles.covariates, groups.n_obs - groups.n_unlabelled
    if not names or 2 * len(groups) <= n_cells:
        return []
    return [
        f"covariates: {', '.join(names)} divide {n_cells:,} cells into {len(groups):,} groups: a measured value is "
        "not a condition"
    ]


def repeated_names(repeats: Sequence[int], n_shared: int, readers: list[ScreenReader]) -> list[str]:
    """Return notes about cell names that occur more than once, in a file or in several.

    Parameters
    ----------
    repeats
        Per file, the number of cells that have the name of an earlier cell.
    n_shared
        Number of names that occur in several files.
    """
    notes = [
        f"{reader.path.name}: {n_repeats:,} cells have the name of an earlier cell of the file: "
        "a name does not tell which cell it is"
        for reader, n_repeats in zip(readers, repeats, strict=True)
        if n_repeats
    ]
    if n_shared:
        notes.append(
            f"{n_shared:,} cell names occur in more than one file: only {DATASET} and name together tell which "
            "cell it is"
        )
    return notes


def dropped_genes(var_tables: list[pd.DataFrame], readers: list[ScreenReader], alignment: GeneAlignment) -> list[str]:
    """Warnings about genes that the store does not keep."""
    return [
        f"{reader.path.name}: {n_dropped} of {len(var)} genes are not in every file and were not copied"
        for reader, var, new_col in zip(readers, var_tables, alignment.new_col, strict=True)
        if (n_dropped := int((new_col < 0).sum()))
    ]


def var_differences(var_tables: list[pd.DataFrame], readers: list[ScreenReader]) -> list[str]:
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
