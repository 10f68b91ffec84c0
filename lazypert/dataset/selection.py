"""Rows of the cells with given labels, found in the groups without reading a matrix."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.validation import require, require_flag
from lazypert.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.screen.rows import Rows

    Labels = str | Sequence[str]

_N_SHOWN = 6
"""Labels listed in a message."""


def rows_with_labels(
    groups: Groups,
    *,
    perturbation: Labels | None,
    cell_type: Labels | None,
    batch: Labels | None,
    covariates: Mapping[str, Any] | None,
    controls: bool | None,
) -> NDArray[np.int64]:
    """Sorted store rows of the cells that meet all conditions, of which None accepts every cell.

    Raises
    ------
    LabelNotFoundError
        If a label does not occur.
    ConfigError
        If there is no such covariate, or `controls` excludes every perturbation that is named.
    """
    chosen = np.ones(len(groups.start), dtype=bool)
    for axis, wanted in (("perturbation", perturbation), ("cell_type", cell_type)):
        if wanted is not None:
            chosen &= np.isin(groups.codes[axis], _codes_of(groups, axis, wanted))
    if covariates is not None:
        chosen &= groups.conditions.where(covariates)[groups.condition]
    if controls is not None:
        _require_agreement(groups, perturbation, require_flag("controls", controls))
        chosen &= groups.is_control == controls
    found = groups.rows(chosen)
    rows = found[:] if batch is None else _rows_of_batches(groups, found, _codes_of(groups, "batch", batch))
    if not (rows[1:] > rows[:-1]).all():
        rows.sort()
    return rows


def _rows_of_batches(groups: Groups, rows: Rows, codes: list[int]) -> NDArray[np.int64]:
    """Those of the rows that are of some batches."""
    parts = [np.empty(0, np.int64)]
    for _, positions in rows.chunks():
        chunk = rows.to_rows(positions)
        parts.append(chunk[np.isin(groups.batch_of(chunk), codes)])
    return np.concatenate(parts)


def _require_agreement(groups: Groups, perturbation: Labels | None, controls: bool) -> None:
    """Refuse `controls` that exclude every perturbation that is named, which would select nothing."""
    if perturbation is None:
        return
    codes = _codes_of(groups, "perturbation", perturbation)
    if not codes or (groups.is_control_code[codes] == controls).any():
        return
    labels = [str(label) for label in groups.labels["perturbation"][groups.is_control_code]]
    if controls:
        names = [*_listed(perturbation), *labels]
        more = ", ..." if len(names) > _N_SHOWN else ""
        raise ConfigError(
            f"controls: got True with perturbation={perturbation!r}, which has no controls, so that nothing would be "
            f"selected. Name the controls as well: perturbation=[{', '.join(map(repr, names[:_N_SHOWN]))}{more}]; or "
            "leave out one of the options."
        )
    raise ConfigError(
        f"controls: got False with perturbation={perturbation!r}, which are controls, so that nothing would be "
        "selected. Leave out one of the options."
    )


def _codes_of(groups: Groups, axis: str, labels: Labels) -> list[int]:
    require(isinstance(labels, Iterable), axis, labels, "a label, or a list of labels")
    return [groups.code_of(axis, label) for label in _listed(labels)]


def _listed(labels: Labels) -> Iterable[str]:
    return [labels] if isinstance(labels, str) else labels
