"""Target genes of labels that are not themselves names of genes, such as guides and drugs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd

from lazypert._internal.paths import local_path
from lazypert._internal.validation import require
from lazypert.errors import ConfigError
from lazypert.screen.combinations import combined_label, parts_of
from lazypert.splits.cell_labels import read_cell_labels

if TYPE_CHECKING:
    from lazypert.screen.targets import Gene
    from lazypert.splits.cell_source import CellSource

TargetMap: TypeAlias = Mapping[str, str | Sequence[str] | Mapping[str, Any]] | str | Path
"""Gene of each label, or a list of several; a ``.csv`` or ``.tsv`` file with labels in its first column and genes in
its second; the name of an obs column with the gene of each cell; or ``uns["genetic_perturbations"]`` of a file in
CELLxGENE's schema."""

_NO_GENE: tuple[Gene, ...] = (("",),)

_FEATURES = ("target_features", "derived_features")
"""Keys of ``{Ensembl id: symbol}`` in an entry of ``uns["genetic_perturbations"]``; the first one not empty is used."""

_COPY = "Copy the file to this machine."

_SUFFIXES = (".csv", ".tsv")
_OTHER_SUFFIXES = (".txt", ".xlsx", ".xls", ".parquet", ".json", ".gz", ".zip")  # of files, not of obs columns

_EXPECTED = "a gene for each label, or a list of genes, all as text"


def check_targets(targets: Any) -> None:
    """Check the option `targets`; files are checked when they are read.

    Raises
    ------
    ConfigError
        If it is neither a mapping of labels to genes, nor a path, nor a name.
    """
    if isinstance(targets, Mapping):
        _ = {label: _genes_of(label, genes, targets) for label, genes in targets.items()}
        _require_features(targets)
    elif targets is not None:
        expected = "a dictionary {label: gene}, a .csv or .tsv file, or the name of an obs column"
        require(isinstance(targets, str | Path) and str(targets) != "", "targets", targets, expected)
        is_path = isinstance(targets, Path) or "/" in targets or targets.endswith(_OTHER_SUFFIXES) or targets[0] in "$~"
        require(is_targets_file(targets) or not is_path, "targets", str(targets), "a .csv or .tsv file")
        if is_targets_file(targets):
            local_path("targets", targets, _COPY)


def is_targets_file(targets: TargetMap | None) -> bool:
    """Whether `targets` name a file; other text is the name of an obs column."""
    return isinstance(targets, str | Path) and os.path.expandvars(targets).endswith(_SUFFIXES)


def read_targets(targets: TargetMap | None) -> dict[str, tuple[Gene, ...]]:
    """Return the genes of each label that has some of its own; one without a name stands for none.

    Raises
    ------
    ConfigError
        If the file cannot be read, has fewer than two columns, or a label has an empty gene beside others.
    """
    if targets is None:
        return {}
    if isinstance(targets, Mapping):
        return {label: _genes_of(label, genes, targets) for label, genes in targets.items()}
    path = local_path("targets", targets, _COPY)
    try:
        table = pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"targets: cannot read {str(path)!r} as a table: {error}") from error
    expected = "a table with a header, labels in its first column and genes in its second"
    require(table.shape[1] >= 2, "targets", str(path), expected)
    found: dict[str, tuple[Gene, ...]] = {}
    for label, gene in table.iloc[:, :2].drop_duplicates().itertuples(index=False, name=None):
        found[label] = (*found.get(label, ()), (gene,))
    for label, genes in found.items():
        _require_genes(label, genes)
    return found


def targets_of_labels(targets: TargetMap | None, source: CellSource) -> dict[str, tuple[Gene, ...]]:
    """Read targets, and give combinations the labels that groups have for them.

    Raises
    ------
    ConfigError
        If one combination is given twice, with other genes, or cells of one perturbation have different ones.
    ColumnNotFoundError
        If there is no such obs column.
    """
    if isinstance(targets, str) and not is_targets_file(targets):
        return _targets_of_column(targets, source)
    found: dict[str, tuple[Gene, ...]] = {}
    for label, genes in read_targets(targets).items():
        combined = combined_label(label, source.groups.roles)
        if found.setdefault(combined, genes) != genes:
            raise ConfigError(
                f"targets: got other genes for {label!r} than for another label of {combined!r}, which is the same "
                "combination; expected its genes once. Remove one of the labels."
            )
    return found


def _targets_of_column(column: str, source: CellSource) -> dict[str, tuple[Gene, ...]]:
    """Genes of each perturbation by an obs column; one whose cells have no value has none."""
    groups = source.groups
    roles, codes = groups.roles, groups.codes["perturbation"]
    perturbed = (codes >= 0) & ~groups.is_control
    found = {str(groups.labels["perturbation"][code]): _NO_GENE for code in np.unique(codes[perturbed])}
    given: dict[str, str] = {}
    for label, gene in read_cell_labels(source, ("perturbation", column), perturbed, "targets").labels:
        if given.setdefault(label, gene) != gene:
            raise ConfigError(
                f"targets: got {given[label]!r} and {gene!r} in {column!r} for cells of {label!r}, expected one target "
                "for all cells of a perturbation. Correct the column, or pass {label: gene}."
            )
        is_combined = roles.separator is not None and roles.separator in gene
        genes = parts_of(gene, str(roles.separator), roles) if is_combined else (gene,)
        found[label] = tuple((name,) for name in genes)
    return found


def _genes_of(label: Any, genes: Any, targets: Any) -> tuple[Gene, ...]:
    require(isinstance(label, str), "targets", targets, _EXPECTED)
    if isinstance(genes, str):
        return ((genes,),)
    if isinstance(genes, Mapping):
        return _genes_of_entry(label, genes)
    names = genes.tolist() if hasattr(genes, "tolist") else genes
    is_text = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    require(is_text, "targets", targets, _EXPECTED)
    found = tuple((name,) for name in dict.fromkeys(names)) or _NO_GENE
    _require_genes(label, found)
    return found


def _require_genes(label: str, genes: tuple[Gene, ...]) -> None:
    """Refuse an empty name, which stands for no target, beside names of genes."""
    is_none = ("",) in genes
    names = [gene[0] for gene in genes]
    require(not is_none or len(genes) == 1, f"targets[{label!r}]", names, "names of genes, or '' alone for no target")


def _genes_of_entry(label: str, entry: Mapping[str, Any]) -> tuple[Gene, ...]:
    """Genes of an entry of ``uns["genetic_perturbations"]``: those of a control are none."""
    role = entry.get("role")
    require(role in ("targeting", "control"), f"targets[{label!r}]['role']", role, "'targeting' or 'control'")
    features = _features_of(entry)
    is_list = not isinstance(features, str)
    require(is_list, f"targets[{label!r}]", features, "target_features {Ensembl id: symbol}, or a list of genes")
    if role == "control" or not len(features):
        return _NO_GENE
    if isinstance(features, Mapping):
        return tuple((str(gene), str(symbol)) for gene, symbol in features.items())
    return tuple((str(gene),) for gene in features)


def _features_of(entry: Mapping[str, Any]) -> Any:
    given = (entry.get(key) for key in _FEATURES)
    return next((features for features in given if features is not None and len(features)), ())


def _require_features(targets: Mapping[Any, Any]) -> None:
    """Refuse entries none of which says what it targets: no perturbation could be judged."""
    entries = [entry for entry in targets.values() if isinstance(entry, Mapping) and entry.get("role") == "targeting"]
    if entries and not any(len(_features_of(entry)) for entry in entries):
        raise ConfigError(
            f"targets: got {len(entries):,} targeting entries without target_features and derived_features, expected "
            "the genes that each targets, as CELLxGENE adds them to published files. Name them: {label: gene}."
        )
