"""Errors about cells that have no controls, or none that share all keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazypert.errors import EmptyPoolError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups

_N_LISTED = 5


def no_controls(groups: Groups, runs: NDArray[np.integer]) -> EmptyPoolError:
    """Return the error for runs whose cell types have no controls; the message names their groups."""
    names = _names(groups, runs)
    cell_types = sorted(set(groups.labels["cell_type"][groups.codes["cell_type"][runs]].tolist()))
    controls = " or ".join(map(repr, groups.roles.controls)) or None
    return EmptyPoolError(
        f"{len(names)} {'groups have' if len(names) > 1 else 'group has'} no controls: {_listed(names)}. "
        f"Expected cells labelled {controls} "
        f"of the cell type{'s' if len(cell_types) > 1 else ''} {', '.join(cell_types)}. "
        "Check control_pert, or leave out these cell types; match_controls(on_empty='mask') masks their cells."
    )


def incomplete_matches(groups: Groups, match: Sequence[str], runs: NDArray[np.integer], n_cells: int) -> EmptyPoolError:
    """Return the error for cells of some runs that no control shares all keys with."""
    names = _names(groups, runs)
    return EmptyPoolError(
        f"match: {n_cells:,} {'cells have' if n_cells > 1 else 'cell has'} no control with the same "
        f"{', '.join(match)}, in {len(names)} {'groups' if len(names) > 1 else 'group'}: {_listed(names)}. "
        "Expected one for each cell, because fallback is 'error'. Leave out these cells or the last key, or pass "
        "fallback='drop_last'; control_coverage() counts the cells of each group."
    )


def _names(groups: Groups, runs: NDArray[np.integer]) -> list[str]:
    """Sorted names of the groups of runs."""
    parts = [groups.labels[axis][groups.codes[axis][runs]].tolist() for axis in ("cell_type", "perturbation")]
    for name, labels in groups.conditions.labels.items():
        parts.append([f"{name} {label}" if label else f"no {name}" for label in labels[groups.condition[runs]]])
    return sorted({f"({', '.join(names)})" for names in zip(*parts, strict=True)})


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:_N_LISTED])}{', ...' if len(names) > _N_LISTED else ''}"
