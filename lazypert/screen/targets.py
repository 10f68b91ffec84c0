"""Perturbations and the genes they are named for: whose expression is whose own target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.kernels import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups


def target_genes(groups: Groups, gene_names: NDArray[np.str_]) -> NDArray[np.int64]:
    """(n_perturbations,) column of the gene that each perturbation is named for; -1 for none.

    Of genes that share a name it is the first. The control label is named for none.
    """
    names, first = np.unique(gene_names, return_index=True)
    labels = groups.labels["perturbation"]
    at = np.minimum(np.searchsorted(names, labels), max(len(names) - 1, 0))
    found = names[at] == labels if len(names) else np.zeros(len(labels), dtype=bool)
    found[labels == (groups.roles.control_pert or "")] = False
    return np.where(found, first[at] if len(names) else -1, -1)


@kernel
def target_sums(
    indptr: Any, indices: Any, data: Any, own: Any, stratum: Any, slot: Any, values: Any, sums: Any
) -> None:
    """Each perturbed row's own target, and each stratum's control sums of every target.

    Parameters
    ----------
    indptr, indices, data
        Rows, sorted.
    own
        (n_rows,) column of each row's own target, -1 for none.
    stratum
        (n_rows,) stratum of a control row, -1 for rows that are no controls.
    slot
        (n_columns,) number of the target that a column is, -1 for none.
    values
        (n_rows,) written where `own` is not -1.
    sums
        (n_strata, n_targets) added to.
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
