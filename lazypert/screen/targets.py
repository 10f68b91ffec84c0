"""Target genes of perturbations, and the sums of their expression that knockdown QC needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.kernels import kernel
from lazypert.screen.combinations import parts_of
from lazypert.screen.ensembl import without_versions
from lazypert.screen.labels import label_array

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups


def target_genes(
    groups: Groups, gene_names: NDArray[np.str_], targets: Mapping[str, str] | None = None
) -> NDArray[np.int64]:
    """(n_perturbations,) column of each perturbation's target gene; -1 if it has none.

    The first column is taken if several genes share a name. Controls have no target. Versions of Ensembl ids are
    ignored where the id with its version is not found.

    Parameters
    ----------
    groups
        The screen's groups.
    gene_names
        (n_genes,) name of each column.
    targets
        Target genes of labels; others are names of their targets.
    """
    target = _find_genes(groups.labels["perturbation"].tolist(), gene_names, targets or {})
    target[groups.is_control_code] = -1
    return target


def target_parts(groups: Groups, targets: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Return the parts of each perturbation that have targets of their own: one, or those of a combination.

    A combination that `targets` names has the one target given there.
    """
    separator = groups.roles.separator
    return [
        (label,)
        if separator is None or separator not in label or label in targets
        else parts_of(label, separator, groups.roles)
        for label in groups.labels["perturbation"].tolist()
    ]


def part_targets(
    parts: list[tuple[str, ...]], number: int, gene_names: NDArray[np.str_], targets: Mapping[str, str]
) -> NDArray[np.int64]:
    """(n_perturbations,) column of the target of one part of each combination; -1 for none, and for single labels."""
    names = [part[number] if 1 < len(part) > number else "" for part in parts]
    return _find_genes(names, gene_names, targets)


def _find_genes(names: Sequence[str], gene_names: NDArray[np.str_], targets: Mapping[str, str]) -> NDArray[np.int64]:
    wanted = label_array([targets.get(name, name) for name in names])
    target = _find(wanted, gene_names)
    return np.where(target < 0, _find(without_versions(wanted), without_versions(gene_names)), target)


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
