"""Alignment of the genes of several screens by name: one rule for files and for opened stores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd

from lazypert._internal.validation import require_choice
from lazypert.errors import SourceFormatError, no_such_column
from lazypert.screen.ensembl import without_versions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Join = Literal["inner", "outer"]

JOINS: tuple[Join, ...] = get_args(Join)


def gene_labels(var: pd.DataFrame, var_gene_col: str | None) -> NDArray[np.str_]:
    """(n_genes,) gene names, from a column of the var table or, with None, from its index.

    Raises
    ------
    ColumnNotFoundError
        If there is no such column.
    """
    if var_gene_col is None:
        return np.asarray(var.index, dtype=np.str_)
    if var_gene_col not in var.columns:
        raise no_such_column("var_gene_col", var_gene_col, "a var column", var.columns)
    return np.asarray(var[var_gene_col], dtype=np.str_)


@dataclass(frozen=True, slots=True, eq=False)
class GeneAlignment:
    """The shared genes of several screens, and their columns in each.

    Attributes
    ----------
    var
        The shared var table, indexed by gene name.
    column_of
        For each screen, (n_shared,) int32: its own column of each shared gene, -1 if it has none.
    new_col
        For each screen, (n_genes,) int32: the shared column of each of its genes, -1 if it is dropped.
    is_same
        Whether all screens have the same genes in the same order.
    """

    var: pd.DataFrame
    column_of: tuple[NDArray[np.int32], ...]
    new_col: tuple[NDArray[np.int32], ...]
    is_same: bool


def align_genes(frames: Sequence[pd.DataFrame], names: Sequence[str], join: str) -> GeneAlignment:
    """Align var tables by their index.

    Parameters
    ----------
    frames
        var table of each screen.
    names
        Name of each screen, for messages and column names.
    join
        ``"inner"`` keeps the genes that every screen has. ``"outer"`` keeps all, and adds boolean var
        columns ``measured_in_<name>`` that tell unmeasured genes from unexpressed ones.

    Raises
    ------
    SourceFormatError
        If a screen has a gene name twice, or the screens have no gene in common.
    """
    require_choice("join", join, JOINS)
    first = frames[0]
    if all(frame.index.equals(first.index) for frame in frames):
        columns = tuple(np.arange(len(first), dtype=np.int32) for _ in frames)
        return GeneAlignment(first, columns, columns, is_same=True)
    for frame, name in zip(frames, names, strict=True):
        if not frame.index.is_unique:
            repeated = frame.index[frame.index.duplicated()][0]
            raise SourceFormatError(
                f"Genes of several screens are aligned by name, but {name!r} has {str(repeated)!r} more than once. "
                "Make the names unique (adata.var_names_make_unique()) and try again."
            )
    genes = first.index
    for frame in frames[1:]:
        genes = genes.intersection(frame.index, sort=False) if join == "inner" else genes.union(frame.index, sort=False)
    if not len(genes):
        examples = ", ".join(
            f"{n!r} has {str(f.index[0])!r}, ..." for f, n in zip(frames, names, strict=True) if len(f)
        )
        plain = [set(without_versions(frame.index)) for frame in frames]
        cure = "Use the same identifiers (symbols or Ensembl ids) in all of them."
        if set.intersection(*plain):
            cure = "They differ in the versions of Ensembl ids: remove these (.1, .2, ...) in all of them."
        raise SourceFormatError(f"The screens share no gene names: {examples}. {cure}")
    var = first.reindex(genes)
    if not genes.isin(first.index).all():
        var = pd.DataFrame({column: _filled(frames, column, genes) for column in first.columns}, index=genes)
    if join == "outer":
        for frame, name in zip(frames, names, strict=True):
            var[f"measured_in_{name}"] = genes.isin(frame.index)
    return GeneAlignment(
        var,
        tuple(frame.index.get_indexer(genes).astype(np.int32) for frame in frames),
        tuple(genes.get_indexer(frame.index).astype(np.int32) for frame in frames),
        is_same=False,
    )


def versions_apart(frames: Sequence[pd.DataFrame]) -> str | None:
    """Describe genes that have one Ensembl id, in different versions, in several var tables; None if there are none.

    They are different genes for `align_genes`, which leaves them out or puts each into a column of its own.
    """
    names = frames[0].index.astype(str)
    shared, every = names, names
    for frame in frames[1:]:
        names = frame.index.astype(str)
        shared, every = shared.intersection(names), every.union(names, sort=False)
    others = every.difference(shared, sort=False)
    plain = pd.Index(without_versions(others))
    apart = plain.duplicated(keep=False)
    if not apart.any():
        return None
    one, *_, another = others[plain == plain[apart][0]]
    return (
        f"{plain[apart].nunique():,} genes have different versions of their Ensembl id in the files, such as {one!r} "
        f"and {another!r}, and were not aligned: remove the versions (.1, .2, ...) in all of them"
    )


def _filled(frames: Sequence[pd.DataFrame], column: str, genes: pd.Index) -> pd.Series:
    """Return a column of the first table, filled from the other tables for genes that it lacks."""
    first = frames[0][column]
    values, is_lacking = first.astype(object).reindex(genes), ~genes.isin(frames[0].index)
    for frame in frames[1:]:
        is_filled = is_lacking & genes.isin(frame.index)
        if column in frame.columns and is_filled.any():
            values[is_filled] = frame[column].astype(object).reindex(genes)[is_filled]
            is_lacking &= ~is_filled
    if isinstance(first.dtype, np.dtype) and first.dtype.kind in "biu":
        nullable = "boolean" if first.dtype.kind == "b" else "Int64"
        try:
            return values.astype(nullable if values.isna().any() else first.dtype)
        except (TypeError, ValueError):  # the tables have different types in this column
            return values.map(lambda value: None if pd.isna(value) else str(value))
    return values.infer_objects()
