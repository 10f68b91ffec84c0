"""On-target knockdown quality control: did each perturbation lower the expression of its target?"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import pandas as pd

from lazypert._internal.config import Config
from lazypert._internal.validation import require_choice, require_integer, require_number
from lazypert.quality.target_expression import ControlMatch, ControlStrata, gather_target_expression
from lazypert.screen.gene_alignment import gene_labels
from lazypert.screen.targets import target_genes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.sources.base import PerturbationSource


PASSED = "passed"
NOT_MEASURED = "target gene not measured"
NOT_EXPRESSED = "target not expressed in controls"
TOO_HIGH = "residual expression too high"
TOO_FEW_CELLS = "too few cells left"


def is_on_target_knockdown(
    gene_expression: NDArray[Any],
    pert_mask: NDArray[np.bool_],
    ctrl_mask: NDArray[np.bool_],
    residual_expression: float = 0.30,
) -> bool:
    """Whether a gene's mean in perturbed cells is below a fraction of its mean in controls.

    Parameters
    ----------
    gene_expression
        (n_cells,) expression of the target.
    pert_mask, ctrl_mask
        (n_cells,) bool, True for the perturbed cells and for the controls.
    residual_expression
        The ratio of the means must be strictly below this.

    Returns
    -------
    ``mean(perturbed) / mean(controls) < residual_expression``; False when the control mean is zero
    or either set of cells is empty.

    Examples
    --------
    >>> import numpy as np
    >>> is_on_target_knockdown(np.array([1.0, 10.0]), np.array([True, False]), np.array([False, True]))
    True
    """
    if not np.any(pert_mask) or not np.any(ctrl_mask):
        return False
    control = float(np.mean(gene_expression[ctrl_mask], dtype=np.float64))
    return control > 0 and float(np.mean(gene_expression[pert_mask], dtype=np.float64)) / control < residual_expression


@dataclass(frozen=True, kw_only=True, repr=False)
class KnockdownOptions(Config):
    """Options that the filter shares with the pipeline; `KnockdownFilterConfig` explains them."""

    residual_expression: float = 0.30
    cell_residual_expression: float = 0.50
    min_cells: int = 30
    var_gene_col: str | None = None
    layer: str | None = None
    control_match: ControlMatch = "all"


@dataclass(frozen=True, kw_only=True, repr=False)
class KnockdownFilterConfig(KnockdownOptions):
    """Options of `OnTargetKnockdownFilter`; the defaults are those of cell-load.

    Parameters
    ----------
    residual_expression
        Stage 1 keeps a perturbation whose mean residual expression is below this.
    cell_residual_expression
        Stage 2 keeps a cell whose own residual expression is below this.
    min_cells
        Stage 3 drops perturbations with fewer cells left than this.
    var_gene_col
        var column with the gene names used as perturbation labels; None uses the var index.
    layer
        Matrix to read; None reads X.
    control_match
        Controls to compare with: ``"all"`` of them; those of the same dataset and ``"cell_type"``; or
        those of the same dataset, cell type and ``"batch"``. A batch without controls is compared with
        all controls of its dataset and cell type, as in control mapping.

    Raises
    ------
    ConfigError
        When a value is out of range.
    """

    def __post_init__(self) -> None:
        for name in ("residual_expression", "cell_residual_expression"):
            require_number(name, getattr(self, name), above=0, most=1)
        require_integer("min_cells", self.min_cells, 1)
        require_choice("control_match", self.control_match, ControlMatch)


class KnockdownFilterKwargs(TypedDict, total=False):
    """Keyword arguments of `KnockdownFilterConfig`."""

    residual_expression: float
    cell_residual_expression: float
    min_cells: int
    var_gene_col: str | None
    layer: str | None
    control_match: ControlMatch


@dataclass(frozen=True, slots=True, eq=False)
class KnockdownResult:
    """Outcome of knockdown quality control.

    Attributes
    ----------
    mask
        (n_obs,) bool by store row: whether the cell passes. Controls always pass.
    table
        One row per perturbation, without the controls: ``perturbation``, ``n_cells``,
        ``control_mean`` and ``perturbed_mean`` (in the units of the matrix), ``residual_expression``
        (their ratio; NaN where it is undefined), ``n_kept``, ``passed``, ``reason``.
    n_unlabelled
        Cells without a perturbation or cell type; they do not pass.
    """

    mask: NDArray[np.bool_]
    table: pd.DataFrame
    n_unlabelled: int

    def __repr__(self) -> str:
        passed = int(self.table["passed"].sum())
        return (
            f"KnockdownResult({passed} of {len(self.table)} perturbations pass, "
            f"{int(self.mask.sum()):,} of {len(self.mask):,} cells)"
        )


class OnTargetKnockdownFilter:
    """Three-stage knockdown filter.

    1. Keep a perturbation if ``mean(own gene) / mean(own gene in controls) < residual_expression``.
    2. In those, keep a cell if ``own gene / mean(own gene in controls) < cell_residual_expression``.
    3. Drop perturbations with fewer than ``min_cells`` cells left.

    Perturbations whose gene is not measured or not expressed in controls are dropped, and the result
    gives the reason. Labels that are not genes (``unassigned``, or double perturbations such as ``A+B``) count as not
    measured. If several genes share a name, the first is used.

    References
    ----------
    cell-load, ``filter_on_target_knockdown`` (Arc Institute).
    """

    def __init__(self, config: KnockdownFilterConfig | None = None) -> None:
        self.config = config or KnockdownFilterConfig()

    def __repr__(self) -> str:
        return f"OnTargetKnockdownFilter({self.config!r})"

    def process(self, source: PerturbationSource) -> NDArray[np.bool_]:
        """(n_obs,) bool mask of the cells that pass, by store row."""
        return self.run(source).mask

    def run(self, source: PerturbationSource) -> KnockdownResult:
        """Filter the cells, and record the reason for every perturbation.

        Uses the cell statistics recorded during conversion where they cover the request. Otherwise streams
        the matrix once, block by block.

        Raises
        ------
        ColumnNotFoundError
            When `var_gene_col` or `layer` does not exist.
        """
        groups = source.groups
        target_column = target_genes(groups, gene_labels(source.layer_var(self.config.layer), self.config.var_gene_col))
        run_of_row = groups.expand(np.arange(len(groups.start), dtype=np.int32), source.n_rows)
        strata = ControlStrata.of(groups, self.config.control_match, run_of_row)
        expression = gather_target_expression(source, groups, target_column, run_of_row, strata, self.config.layer)
        control_mean = expression.control_means(strata.wider)
        mask = groups.expand(groups.is_control & (groups.ids >= 0), source.n_rows)
        verdicts = []
        for code, label in enumerate(groups.labels["perturbation"]):
            runs = np.flatnonzero((groups.codes["perturbation"] == code) & (groups.ids >= 0) & ~groups.is_control)
            if not len(runs):
                continue
            rows = groups.rows(runs)[:]
            stratum = strata.of_row[rows]
            expected, one_stratum = control_mean[stratum, code], bool((stratum == stratum[0]).all())
            verdict, keep = _judge(self.config, str(label), expression.own[rows], expected, one_stratum=one_stratum)
            verdicts.append(asdict(verdict))
            mask[rows[keep]] = True
        table = pd.DataFrame(verdicts, columns=[field.name for field in fields(_Verdict)])
        return KnockdownResult(mask, table, groups.n_unlabelled)


@dataclass(slots=True)
class _Verdict:
    """One row of `KnockdownResult.table`; the fields are its columns."""

    perturbation: str
    n_cells: int
    control_mean: float = np.nan
    perturbed_mean: float = np.nan
    residual_expression: float = np.nan
    n_kept: int = 0
    passed: bool = False
    reason: str = NOT_MEASURED


def _judge(
    config: KnockdownFilterConfig,
    label: str,
    own: NDArray[np.floating[Any]],
    expected: NDArray[np.float64],
    *,
    one_stratum: bool,
) -> tuple[_Verdict, NDArray[np.bool_]]:
    """Apply the three stages to one perturbation.

    Parameters
    ----------
    own
        (n,) expression of the target in the perturbation's cells; NaN where it was not measured.
    expected
        (n,) mean of the target in the controls that each cell is compared with.
    one_stratum
        Whether all of these cells are compared with the same controls.

    Returns
    -------
    The table row, and (n,) bool: the cells to keep.
    """
    verdict, dropped = _Verdict(label, len(own)), np.zeros(len(own), dtype=bool)
    measured = np.flatnonzero(~np.isnan(own))
    if not len(measured):
        return verdict, dropped
    own, expected = own[measured].astype(np.float64), expected[measured]
    # A mean of equal numbers may differ from them in the last bit.
    control = float(expected[0]) if one_stratum else float(np.mean(expected))
    verdict.control_mean, verdict.perturbed_mean = control, float(np.mean(own))
    if not control > 0 or not np.isfinite(control):
        verdict.reason = NOT_EXPRESSED
        return verdict, dropped
    verdict.residual_expression = residual = verdict.perturbed_mean / control
    if not residual < config.residual_expression:
        verdict.reason = f"{TOO_HIGH} ({residual:.3f}, must be below {config.residual_expression})"
        return verdict, dropped
    with np.errstate(invalid="ignore", divide="ignore"):
        below = measured[own / expected < config.cell_residual_expression]
    if len(below) < config.min_cells:
        verdict.reason = f"{TOO_FEW_CELLS} ({len(below)}, must be at least {config.min_cells})"
        return verdict, dropped
    keep = dropped.copy()
    keep[below] = True
    verdict.n_kept, verdict.passed, verdict.reason = len(below), True, PASSED
    return verdict, keep
