"""On-target knockdown quality control: did each perturbation lower the gene it targets?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import pandas as pd

from lazypert._internal.config import Config
from lazypert._internal.validation import require_choice, require_integer, require_number
from lazypert.screen.targets import target_genes, target_sums

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.sources.base import PerturbationSource
    from lazypert.sources.matrix_segment import MatrixSegment
    from lazypert.store.matrix import Matrix


MATCHING = ("all", "cell_type", "batch")


PASSED = "passed"


NOT_MEASURED = "target gene not measured"


NO_CONTROL_EXPRESSION = "target not expressed in controls"


WEAK = "residual expression too high"


FEW = "too few cells left"


_BLOCK_VALUES, _SPANS = 4_194_304, 64


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
        (n_cells,) bool.
    residual_expression
        The mean ratio must be strictly below this.

    Returns
    -------
    ``mean(perturbed) / mean(controls) < residual_expression``; False when the control mean is zero
    or either group is empty.

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
    control_match: str = "all"


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
        Stage 3 drops perturbations with fewer cells left.
    var_gene_col
        var column that holds the gene names used as perturbation labels; None takes the var index.
    layer
        Matrix to look at; None takes X.
    control_match
        Controls to compare with: ``"all"``, or those of the same ``"cell_type"`` or ``"batch"``
        (and cell type and dataset), as control mapping does: of the cell type where a batch has none.
    """

    def __post_init__(self) -> None:
        for name in ("residual_expression", "cell_residual_expression"):
            require_number(name, getattr(self, name), above=0, most=1)
        require_integer("min_cells", self.min_cells, 1)
        require_choice("control_match", self.control_match, MATCHING)


@dataclass(frozen=True, slots=True, eq=False)
class KnockdownResult:
    """What knockdown QC found.

    Attributes
    ----------
    mask
        (n_obs,) bool, by store row: the cell passes. Controls always do.
    table
        One line a perturbation (controls left out): ``perturbation``, ``n_cells``,
        ``control_mean``, ``perturbed_mean`` (in the units of the matrix), ``residual_expression``
        (their ratio; NaN where there is none), ``n_kept``, ``passed``, ``reason``.
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
    2. Of those, keep a cell if ``own gene / mean(own gene in controls) < cell_residual_expression``.
    3. Drop perturbations with fewer than ``min_cells`` cells left.

    A perturbation whose gene is not measured, or not expressed in controls, is dropped with that
    reason; so are labels that are no gene at all (``unassigned``, doubles such as ``A+B``). Of
    genes that share a name the first is used.

    References
    ----------
    cell-load, ``filter_on_target_knockdown`` (Arc Institute).
    """

    def __init__(self, config: KnockdownFilterConfig | None = None) -> None:
        self.config = config or KnockdownFilterConfig()

    def process(self, source: PerturbationSource) -> NDArray[np.bool_]:
        """(n_obs,) mask of the cells that pass, by store row."""
        return self.run(source).mask

    def run(self, source: PerturbationSource) -> KnockdownResult:
        """Filter, and say why for every perturbation.

        Takes what conversion noted, where it noted what is asked; else streams the matrix once,
        block by block.
        """
        groups = source.groups
        genes = target_genes(groups, source.gene_labels(self.config.var_gene_col))
        stratum = _strata(groups, self.config.control_match)
        seen = own_target_expression(source, groups, genes, stratum, self.config.layer)
        return _filter(self.config, groups, genes, stratum, seen, source.n_rows)


@dataclass(frozen=True, slots=True)
class OwnTarget:
    """Expression of targets, gathered in one pass.

    Attributes
    ----------
    own
        (n_obs,) each perturbed cell's expression of its own target; NaN for all other cells.
    control_sum
        (n_strata, n_perturbations) sum of each target over the control cells of a stratum.
    control_cells
        (n_strata, n_perturbations) number of control cells in which the target was measured.
    """

    own: NDArray[np.floating[Any]]
    control_sum: NDArray[np.float64]
    control_cells: NDArray[np.int64]


def own_target_expression(
    source: PerturbationSource,
    groups: Groups,
    genes: NDArray[np.int64],
    stratum: NDArray[np.int64],
    layer: str | None,
) -> OwnTarget:
    """Gather targets' expression: from notes, or by one Dask task a span of rows, which reads them block by block."""
    n_strata = int(stratum.max(initial=0)) + 1
    run_of_row = groups.expand(np.arange(len(groups.start), dtype=np.int32), source.n_rows)
    run_stratum = np.where(groups.is_control, stratum, -1)
    task = dask.delayed(_span_expression, pure=False)
    tasks, spans, parts = [], [], list(source.segments(layer))
    for part in parts:
        n_rows = part.matrix.shape[0]
        targets = np.append(part.column_of, -1)[genes].astype(np.int64)  # the last is what -1 picks
        run_target = np.append(targets, -1)[groups.codes["perturbation"]]
        if (known := _known_targets(part, groups, targets)) is not None:
            tasks.append(dask.delayed(_noted, pure=False)(part, known, run_of_row, run_target, run_stratum, n_strata))
            spans.append((part.first_row, part.first_row + n_rows))
            continue
        # A number of spans that no machine decides: sums of floats depend on where they are cut.
        length = max(1, -(-n_rows // _SPANS))
        for start in range(0, n_rows, length):
            stop = min(n_rows, start + length)
            runs = run_of_row[part.first_row + start : part.first_row + stop]
            tasks.append(task(part.matrix, start, runs, run_target, run_stratum, targets, n_strata))
            spans.append((part.first_row + start, part.first_row + stop))
    dtype = max((part.matrix.dense_dtype for part in parts), key=lambda d: d.itemsize, default=np.dtype("f4"))
    own_values = np.full(source.n_rows, np.nan, dtype=dtype)
    sums = np.zeros((n_strata, len(genes)))
    cells = np.zeros((n_strata, len(genes)), dtype=np.int64)
    for (start, stop), (values, span_sums, span_cells) in zip(spans, dask.compute(*tasks), strict=True):
        own_values[start:stop] = values
        sums += span_sums
        cells += span_cells
    return OwnTarget(own_values, sums, cells)


def _known_targets(part: MatrixSegment, groups: Groups, targets: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """(n_perturbations,) number of each asked target among those noted, -1 for none; None if any differs."""
    if part.cell_stats is None or part.labels is None:
        return None
    labels = groups.labels["perturbation"]
    at = np.minimum(np.searchsorted(part.labels, labels), max(len(part.labels) - 1, 0))
    known = part.labels[at] == labels if len(part.labels) else np.zeros(len(labels), dtype=bool)
    noted = np.where(known, part.cell_stats.target[at] if len(part.labels) else -1, -1)
    asked = targets >= 0
    return np.where(asked, at, -1) if (noted[asked] == targets[asked]).all() else None


def _noted(
    part: MatrixSegment,
    known: NDArray[np.int64],
    run_of_row: NDArray[np.int32],
    run_target: NDArray[np.int64],
    run_stratum: NDArray[np.int64],
    n_strata: int,
) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.int64]]:
    """What `_span_expression` finds in all rows of a matrix, from what conversion noted of them."""
    facts = part.cell_stats
    assert facts is not None
    asked = known >= 0
    sums = np.zeros((n_strata, len(known)))
    stratum = run_stratum[run_of_row[part.first_row + facts.control_row]]
    np.add.at(sums, (stratum[:, None], np.flatnonzero(asked)[None, :]), facts.control_sum[:, known[asked]])
    runs = run_of_row[part.first_row : part.first_row + part.matrix.shape[0]]
    per_row = np.append(run_stratum, -1)[runs]
    cells = np.bincount(per_row[per_row >= 0], minlength=n_strata)[:, None] * asked
    values = facts.own_target.read(0, len(facts.own_target)).astype(part.matrix.dense_dtype)
    values[np.append(run_target, -1)[runs] < 0] = np.nan  # noted, but not asked
    return values, sums, cells


def _span_expression(
    matrix: Matrix,
    first: int,
    runs: NDArray[np.int32],
    run_target: NDArray[np.int64],
    run_stratum: NDArray[np.int64],
    targets: NDArray[np.int64],
    n_strata: int,
) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.int64]]:
    """Own target's value of each row, and sums and numbers of control cells, for rows from `first` on."""
    values = np.full(len(runs), np.nan, dtype=matrix.dense_dtype)
    sums = np.zeros((n_strata, len(targets)))
    slot = np.full(matrix.shape[1], -1, dtype=np.int64)
    slot[targets[targets >= 0]] = np.flatnonzero(targets >= 0)
    # Controls are asked for all targets, other cells for their own; run -1 is in no group.
    own, stratum = np.append(run_target, -1)[runs], np.append(run_stratum, -1)[runs]
    density = max(1.0, matrix.stats["nnz"] / max(1, matrix.shape[0]))
    step = max(1, int(_BLOCK_VALUES / density))
    for start in range(0, len(runs), step):
        rows = slice(start, min(len(runs), start + step))
        if (own[rows] >= 0).any() or (stratum[rows] >= 0).any():
            block = matrix.read(first + rows.start, first + rows.stop)
            target_sums(block.indptr, block.indices, block.data, own[rows], stratum[rows], slot, values[rows], sums)
    cells = np.bincount(stratum[stratum >= 0], minlength=n_strata)[:, None] * (targets >= 0)
    return values, sums, cells


def _strata(groups: Groups, match: str) -> NDArray[np.int64]:
    """(n_runs,) number of the control stratum that each run is compared with."""
    if match == "all":
        return np.zeros(len(groups.start), dtype=np.int64)
    axes = ("cell_type", "dataset") if match == "cell_type" else ("cell_type", "dataset", "batch")
    key = np.zeros(len(groups.start), dtype=np.int64)
    for axis in axes:
        key = key * (len(groups.labels[axis]) + 1) + groups.codes[axis] + 1
    return np.unique(key, return_inverse=True)[1].astype(np.int64)


def _control_means(groups: Groups, stratum: NDArray[np.int64], seen: OwnTarget) -> NDArray[np.float64]:
    """(n_strata, n_perturbations) mean of each target; of the cell type where a batch has no controls."""
    wider = _strata(groups, "cell_type")
    wider_of = np.zeros(len(seen.control_sum), dtype=np.int64)
    wider_of[stratum] = wider
    shape = (int(wider.max(initial=0)) + 1, seen.control_sum.shape[1])
    sums, cells = np.zeros(shape), np.zeros(shape, dtype=np.int64)
    np.add.at(sums, wider_of, seen.control_sum)
    np.add.at(cells, wider_of, seen.control_cells)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(seen.control_cells > 0, seen.control_sum / seen.control_cells, (sums / cells)[wider_of])


def _filter(
    config: KnockdownFilterConfig,
    groups: Groups,
    genes: NDArray[np.int64],
    stratum: NDArray[np.int64],
    seen: OwnTarget,
    n_rows: int,
) -> KnockdownResult:
    control_mean = _control_means(groups, stratum, seen)
    mask = groups.expand(groups.is_control & (groups.ids >= 0), n_rows)
    lines = []
    for code, label in enumerate(groups.labels["perturbation"]):
        runs = np.flatnonzero((groups.codes["perturbation"] == code) & (groups.ids >= 0) & ~groups.is_control)
        if not len(runs):
            continue
        cells = groups.rows(runs)
        rows = cells[:]
        expected = np.repeat(control_mean[stratum[runs], code], groups.sizes[runs])
        measured = ~np.isnan(seen.own[rows])
        own, expected = seen.own[rows][measured].astype(np.float64), expected[measured]
        line: dict[str, Any] = {
            "perturbation": str(label),
            "n_cells": len(rows),
            "control_mean": np.nan,
            "perturbed_mean": np.nan,
        }
        line |= {"residual_expression": np.nan, "n_kept": 0, "passed": False}
        lines.append(line)
        if genes[code] < 0 or not measured.any():
            line["reason"] = NOT_MEASURED
            continue
        # With controls of one stratum this mean is that stratum's own, to the last bit.
        same = len(np.unique(stratum[runs])) == 1
        line["control_mean"] = control = float(expected[0]) if same else float(np.mean(expected))
        line["perturbed_mean"] = float(np.mean(own))
        if not control > 0 or not np.isfinite(control):
            line["reason"] = NO_CONTROL_EXPRESSION
            continue
        line["residual_expression"] = residual = line["perturbed_mean"] / control
        if not residual < config.residual_expression:
            line["reason"] = f"{WEAK} ({residual:.3f}, must be below {config.residual_expression})"
            continue
        with np.errstate(invalid="ignore", divide="ignore"):
            kept = rows[measured][own / expected < config.cell_residual_expression]
        line["n_kept"] = len(kept)
        if len(kept) < config.min_cells:
            line["reason"] = f"{FEW} ({len(kept)}, must be at least {config.min_cells})"
            line["n_kept"] = 0
            continue
        line["passed"], line["reason"] = True, PASSED
        mask[kept] = True
    columns = ["perturbation", "n_cells", "control_mean", "perturbed_mean"]
    columns += ["residual_expression", "n_kept", "passed", "reason"]
    return KnockdownResult(mask, pd.DataFrame(lines, columns=columns), groups.n_unlabelled)
