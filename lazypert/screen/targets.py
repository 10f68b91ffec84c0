"""Target genes of perturbations, and the sums of their expression that knockdown QC needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from lazypert._internal.kernels import kernel
from lazypert.screen.combinations import parts_of
from lazypert.screen.ensembl import without_versions
from lazypert.screen.labels import label_array

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups

Gene: TypeAlias = tuple[str, ...]
"""Names of one gene, such as an Ensembl id and a symbol; the first that is found is used."""

Targets: TypeAlias = "Mapping[str, tuple[Gene, ...]]"
"""Genes of labels that are not names of their targets; a gene without a name stands for no target."""


class TargetPart(NamedTuple):
    """One target of a perturbation.

    Attributes
    ----------
    name
        What to call it in messages: the part of the label, or one of several genes of a part.
    gene
        Names of the gene.
    is_given
        Whether the gene was given, rather than that the label is its name.
    """

    name: str
    gene: Gene
    is_given: bool


def target_genes(groups: Groups, gene_names: NDArray[np.str_]) -> NDArray[np.int64]:
    """(n_perturbations,) column of the gene that each perturbation is named after; -1 if there is none.

    The first column is taken if several genes share a name. Controls have no target. Versions of Ensembl ids are
    ignored where the id with its version is not found.

    Parameters
    ----------
    groups
        The screen's groups.
    gene_names
        (n_genes,) name of each column.
    """
    target = _find_genes(groups.labels["perturbation"].tolist(), gene_names)
    target[groups.is_control_code] = -1
    return target


def target_parts(groups: Groups, targets: Targets) -> list[tuple[TargetPart, ...]]:
    """Return the targets of each perturbation: of a single label, of each part of a combination, or those given.

    Parameters
    ----------
    targets
        Genes of the labels, and of the parts of combinations, that are not names of their targets. A combination
        that is named itself has the genes given there.
    """
    separator, parts = groups.roles.separator, []
    for label, is_control in zip(groups.labels["perturbation"].tolist(), groups.is_control_code, strict=True):
        is_single = separator is None or separator not in label or label in targets
        names = (label,) if is_single else parts_of(label, str(separator), groups.roles)
        parts.append(() if is_control else tuple(part for name in names for part in _parts_of_name(name, targets)))
    return parts


def _parts_of_name(name: str, targets: Targets) -> Iterator[TargetPart]:
    genes = targets.get(name)
    if genes is None:
        yield TargetPart(name, (name,), is_given=False)
        return
    for gene in genes:
        yield TargetPart(name if len(genes) == 1 else gene[-1], gene, is_given=True)


def part_columns(
    parts: Sequence[TargetPart | None], gene_names: NDArray[np.str_], index_names: NDArray[np.str_]
) -> NDArray[np.int64]:
    """(n,) column of each target; -1 if it is not found, or the part is None.

    Parameters
    ----------
    gene_names
        (n_genes,) names that labels are looked up in, and genes that are given for labels.
    index_names
        (n_genes,) names in the var index, which genes that are given are looked up in as well.
    """
    columns = np.full(len(parts), -1, dtype=np.int64)
    for number in range(max((len(part.gene) for part in parts if part is not None), default=0)):
        wanted = ["" if part is None or number >= len(part.gene) else part.gene[number] for part in parts]
        given = [name if part is not None and part.is_given else "" for part, name in zip(parts, wanted, strict=True)]
        for names, where in ((wanted, gene_names), (given, index_names)):
            columns = np.where(columns < 0, _find_genes(names, where), columns)
    return columns


def _find_genes(names: Sequence[str], gene_names: NDArray[np.str_]) -> NDArray[np.int64]:
    """(n_names,) column of each name, exactly or else without versions of Ensembl ids; -1 for none and for ''."""
    wanted = label_array(names)
    target = _find(wanted, gene_names)
    target = np.where(target < 0, _find(without_versions(wanted), without_versions(gene_names)), target)
    return np.where(wanted == "", -1, target)


def _find(labels: NDArray[np.str_], gene_names: NDArray[np.str_]) -> NDArray[np.int64]:
    """(n_labels,) first column with each label as its name, -1 for none."""
    if not len(gene_names):
        return np.full(len(labels), -1)
    names, first_column = np.unique(gene_names, return_index=True)
    index = np.minimum(np.searchsorted(names, labels), len(names) - 1)
    return np.where(names[index] == labels, first_column[index], -1)


@kernel
def target_sums(
    indptr: Any, indices: Any, data: Any, own: Any, stratum: Any, slot: Any, values: Any, sums: Any
) -> None:
    """Gather each perturbed row's own target, and add up every target over the controls of each stratum.

    Parameters
    ----------
    indptr, indices, data
        Sparse rows with sorted indices.
    own
        (n_rows,) column of each row's own target, -1 for none.
    stratum
        (n_rows,) stratum of each control, -1 for rows that are not controls.
    slot
        (n_columns,) number of the target in each column, -1 for none.
    values
        (n_rows,) own target's value, written where `own` is not -1.
    sums
        (n_strata, n_targets) sums that values are added to.
    """
    for row in range(len(indptr) - 1):
        start, stop = indptr[row], indptr[row + 1]
        if stratum[row] >= 0:
            for k in range(start, stop):
                target = slot[indices[k]]
                if target >= 0:
                    sums[stratum[row], target] += data[k]
        elif own[row] >= 0:
            k = start + np.searchsorted(indices[start:stop], own[row])
            values[row] = data[k] if k < stop and indices[k] == own[row] else 0
