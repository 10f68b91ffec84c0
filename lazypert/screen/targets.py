"""Target genes of perturbations, and the sums of their expression that knockdown QC needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.kernels import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups


def target_genes(groups: Groups, gene_names: NDArray[np.str_]) -> NDArray[np.int64]:
    """(n_perturbations,) column of each perturbation's target gene; -1 if it has none.

    The first column is taken if several genes share a name. The control label has no target.

    Parameters
    ----------
    groups
        The screen's groups.
    gene_names
        (n_genes,) name of each column.
    """
    names, first_column = np.unique(gene_names, return_index=True)
    labels = groups.labels["perturbation"]
    index = np.minimum(np.searchsorted(names, labels), max(len(names) - 1, 0))
    has_target = names[index] == labels if len(names) else np.zeros(len(labels), dtype=bool)
    has_target[labels == (groups.roles.control_pert or "")] = False
    return np.where(has_target, first_column[index] if len(names) else -1, -1)


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
