"""Judging one perturbation by the expression of its target."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lazypert.quality.config import Direction, KnockdownOptions

Evidence: TypeAlias = "tuple[NDArray[np.floating[Any]], NDArray[np.float64]]"
"""Expression of a target in each cell of a perturbation, and the mean in the controls of that cell."""

PASSED = "passed"
NOT_MEASURED = "target gene not measured"
NO_CONTROLS = "no controls to compare with"
NOT_EXPRESSED = "target not expressed in controls"
TOO_HIGH = "residual expression too high"
TOO_LOW = "residual expression too low"
UNCHANGED = "residual expression too close to 1"
TOO_FEW_CELLS = "too few cells left"


@dataclass(slots=True)
class Verdict:
    """One row of `KnockdownResult.table`; the fields are its columns."""

    perturbation: str
    n_cells: int
    n_compared: int = 0
    control_mean: float = np.nan
    perturbed_mean: float = np.nan
    residual_expression: float = np.nan
    n_kept: int = 0
    passed: bool = False
    reason: str = NOT_MEASURED


def judge(
    config: KnockdownOptions, label: str, own: NDArray[np.floating[Any]], expected: NDArray[np.float64]
) -> tuple[Verdict, NDArray[np.int64]]:
    """Apply the three stages to one perturbation.

    Parameters
    ----------
    own
        (n,) expression of the target in the perturbation's cells; NaN where it was not measured.
    expected
        (n,) mean of the target in the controls that each cell is compared with; NaN where there are none. Such cells
        do not pass, and have no part in the verdict on the others.

    Returns
    -------
    The table row, and the numbers of the cells to keep.
    """
    verdict, nothing = Verdict(label, len(own)), np.empty(0, dtype=np.int64)
    if np.isnan(own).all():
        return verdict, nothing
    compared = np.flatnonzero(~np.isnan(own) & np.isfinite(expected))
    verdict.n_compared = len(compared)
    if not len(compared):
        verdict.reason = NO_CONTROLS
        return verdict, nothing
    own, expected = own[compared].astype(np.float64), expected[compared]
    # A mean of equal numbers may differ from them in the last bit.
    control = float(expected[0]) if (expected == expected[0]).all() else float(np.mean(expected))
    verdict.control_mean, verdict.perturbed_mean = control, float(np.mean(own))
    if not control > 0:
        verdict.reason = NOT_EXPRESSED
        return verdict, nothing
    verdict.residual_expression = residual = verdict.perturbed_mean / control
    direction = _direction_of(residual, config.residual_expression, config.direction)
    if direction is None:
        verdict.reason = _refusal(residual, config)
        return verdict, nothing
    with np.errstate(invalid="ignore", divide="ignore"):
        passes = _is_changed(own / expected, config.cell_residual_expression, direction)
    kept = compared[passes & (expected > 0)]
    if len(kept) < config.min_cells:
        verdict.reason = f"{TOO_FEW_CELLS} ({len(kept)}, must be at least {config.min_cells})"
        return verdict, nothing
    verdict.n_kept, verdict.passed, verdict.reason = len(kept), True, PASSED
    return verdict, kept


def judge_parts(
    config: KnockdownOptions, label: str, parts: Sequence[str], evidence: Sequence[Evidence]
) -> tuple[Verdict, NDArray[np.int64]]:
    """Apply the three stages to a combination: it passes if each of its parts does, in the same cells.

    Parameters
    ----------
    parts
        Names of the parts.
    evidence
        `own` and `expected` of each part, as for `judge`.

    Returns
    -------
    The table row, with the figures of the part that fails or has changed least, and the numbers of the cells to keep.
    """
    any_number = replace(config, min_cells=1)
    judged = [judge(any_number, label, *of_part) for of_part in evidence]
    for part, (verdict, _) in zip(parts, judged, strict=True):
        if not verdict.passed:
            verdict.reason = f"{part}: {verdict.reason}"
            return verdict, np.empty(0, dtype=np.int64)
    verdict = min((verdict for verdict, _ in judged), key=lambda v: abs(np.log(max(v.residual_expression, 1e-300))))
    kept = reduce(np.intersect1d, [cells for _, cells in judged])
    verdict.n_kept, verdict.passed = len(kept), len(kept) >= config.min_cells
    if verdict.passed:
        return verdict, kept
    verdict.n_kept, verdict.reason = 0, f"{TOO_FEW_CELLS} ({len(kept)}, must be at least {config.min_cells})"
    return verdict, np.empty(0, dtype=np.int64)


def _is_changed(ratio: Any, limit: float, direction: Direction) -> Any:
    return ratio < limit if direction == "down" else ratio > 1 / limit


def _direction_of(residual: float, limit: float, wanted: Direction) -> Direction | None:
    """Direction in which a mean has changed enough; None if in none that is wanted."""
    directions: tuple[Direction, ...] = ("down", "up") if wanted == "both" else (wanted,)
    return next((direction for direction in directions if _is_changed(residual, limit, direction)), None)


def _refusal(residual: float, config: KnockdownOptions) -> str:
    """Why a perturbation fails stage 1."""
    low, high = f"below {config.residual_expression}", f"above {1 / config.residual_expression:.4g}"
    kind, limits = {
        "down": (TOO_HIGH, low),
        "up": (TOO_LOW, high),
        "both": (UNCHANGED, f"{low} or {high}"),
    }[config.direction]
    return f"{kind} ({residual:.3f}, must be {limits})"
