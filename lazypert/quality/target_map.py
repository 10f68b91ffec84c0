"""Target genes of labels that are not themselves names of genes, such as guides and drugs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from lazypert._internal.paths import local_path
from lazypert._internal.validation import require
from lazypert.errors import ConfigError

TargetMap: TypeAlias = Mapping[str, str] | str | Path
"""Gene of each label, or a ``.csv`` or ``.tsv`` file with labels in its first column and genes in its second."""


def check_targets(targets: Any) -> None:
    """Check the option `targets`; files are checked when they are read.

    Raises
    ------
    ConfigError
        If it is neither a mapping of text to text nor a path.
    """
    if isinstance(targets, Mapping):
        is_text = all(isinstance(item, str) for pair in targets.items() for item in pair)
        require(is_text, "targets", targets, "a gene for each label, both as text")
    elif targets is not None:
        require(isinstance(targets, str | Path), "targets", targets, "a dictionary {label: gene}, or a .csv file")
        require(Path(targets).suffix in (".csv", ".tsv"), "targets", str(targets), "a .csv or .tsv file")


def read_targets(targets: TargetMap | None) -> dict[str, str]:
    """Return the gene of each label that has one of its own.

    Raises
    ------
    ConfigError
        If the file cannot be read, has fewer than two columns, or gives a label two genes.
    """
    if targets is None:
        return {}
    if isinstance(targets, Mapping):
        return dict(targets)
    path = local_path("targets", targets, "Copy the file to this machine.")
    try:
        table = pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"targets: cannot read {str(path)!r} as a table: {error}") from error
    expected = "a table with a header, labels in its first column and genes in its second"
    require(table.shape[1] >= 2, "targets", str(path), expected)
    pairs = table.iloc[:, :2].drop_duplicates()
    labels = pairs.iloc[:, 0]
    repeated = labels[labels.duplicated()]
    if len(repeated):
        genes = pairs.iloc[:, 1][labels == repeated.iloc[0]].tolist()
        raise ConfigError(
            f"targets: got {' and '.join(map(repr, genes))} for {repeated.iloc[0]!r} in {str(path)!r}, expected one "
            "gene for each label. Remove one of the lines."
        )
    return dict(zip(labels, pairs.iloc[:, 1], strict=True))
