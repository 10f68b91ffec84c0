"""Why targets are not measured: what the labels look like, and which var column has the genes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from lazypert.errors import ConfigError, quoted
from lazypert.screen.targets import part_columns

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.screen.targets import TargetPart

# GENE_sg1, sgGENE-2, GENE_guide3, GENE.1, sgGENE
_GUIDE = re.compile(r"^(?:sg|gRNA[_-]?|guide[_-]?)?(?P<gene>.+?)(?:[_.-](?:sg|g|gRNA|guide)?[_-]?\d+)?$", re.IGNORECASE)


def require_targets(
    groups: Groups,
    codes: NDArray[np.integer],
    parts: Sequence[Sequence[TargetPart]],
    target_column: NDArray[np.int64],
    var: pd.DataFrame,
    used: str | None,
) -> None:
    """Refuse a screen in which no perturbation's target is measured: no cell but controls would pass.

    Parameters
    ----------
    codes
        Codes of the perturbations to judge.
    parts
        Targets of each perturbation.
    target_column
        (n_perturbations,) column of one of each perturbation's targets, -1 for none.
    used
        The var column in which they were looked up; None is the index.

    Raises
    ------
    ConfigError
        Names the var column that has the targets, or says what the labels look like.
    """
    if not len(codes) or (target_column[codes] >= 0).any():
        return
    labels = groups.labels["perturbation"][codes]
    raise ConfigError(
        f"var_gene_col: got {used!r}, but 0 of {len(codes):,} targets are in {_column_name(used)}, so that no "
        f"perturbation can be judged; expected perturbations that are named after genes. "
        f"{_advice(labels, [parts[code] for code in codes.tolist()], var, used)}"
    )


def _column_name(name: str | None) -> str:
    return "the var index (var_names)" if name is None else f"var[{name!r}]"


def _gene_columns(var: pd.DataFrame) -> dict[str | None, NDArray[np.str_]]:
    """The var index, and the columns that may hold gene names."""
    columns: dict[str | None, NDArray[np.str_]] = {None: np.asarray(var.index).astype(str).astype(np.str_)}
    for name in var.columns:
        if var[name].dtype.kind not in "fiubcmM":
            columns[str(name)] = np.asarray(var[name]).astype(str).astype(np.str_)
    return columns


def _advice(
    labels: NDArray[np.str_], parts: Sequence[Sequence[TargetPart]], var: pd.DataFrame, used: str | None
) -> str:
    columns = _gene_columns(var)
    first = [part[0] if part else None for part in parts]
    found = {name: int((part_columns(first, genes, genes) >= 0).sum()) for name, genes in columns.items()}
    best = max(found, key=lambda name: found[name])
    if found[best]:
        n = "all of them" if found[best] == len(parts) else f"{found[best]:,} of them"
        return f"{_column_name(best)} has {n}: use var_gene_col={best!r}."
    looks = [look for name in columns for look in looks_like(labels.tolist(), columns[name].tolist())]
    if looks:
        return " ".join(dict.fromkeys(looks))
    return (
        f"Labels are {_quoted(labels)}; genes are {_quoted(columns[used])}. Name the var column that has them, "
        "or pass targets=... with the gene of each label."
    )


def looks_like(labels: list[str], genes: Iterable[str]) -> list[str]:
    """Say what labels that are not genes look like, with what to do about it."""
    known, looks = set(genes), []
    blank = [label for label in labels if label != label.strip() and label.strip() in known]
    if blank:
        looks.append(f"Labels such as {blank[0]!r} have blanks around the name of a gene: remove them from obs.")
    combined = [label for label in labels if "+" in label and any(part.strip() in known for part in label.split("+"))]
    if combined:
        looks.append(
            f"The + in labels such as {combined[0]!r} suggests combinations, and names of controls in them: "
            "use separator='+'."
        )
    guides = [label for label in labels if label not in combined and gene_of_guide(label) in known - {label}]
    if guides:
        looks.append(
            f"Labels such as {guides[0]!r} suggest guides of gene {gene_of_guide(guides[0])!r}: pass targets=... with "
            "the gene of each label, or use the obs column of target genes as pert_col."
        )
    folded = {gene.casefold(): gene for gene in known}
    cased = [label for label in labels if label not in known and label.casefold() in folded]
    if cased:
        looks.append(
            f"Label {cased[0]!r} and gene {folded[cased[0].casefold()]!r} differ in upper and lower case: "
            "rename one of them."
        )
    return looks


def gene_of_guide(label: str) -> str:
    """Return the gene that a guide's name suggests, such as G1 of ``G1_sg2`` or ``sgG1-2``."""
    match = _GUIDE.match(label)
    return match["gene"] if match else label


def hint(label: str, genes: set[str]) -> str:
    """Return an addition to the reason of one label that is not a gene, or an empty string."""
    if label != label.strip() and label.strip() in genes:
        return f" (the label {label!r} has blanks around the gene {label.strip()!r})"
    return ""


def _quoted(names: NDArray[np.str_]) -> str:
    return ", ".join(map(quoted, names[:3].tolist())) + (", ..." if len(names) > 3 else "")
