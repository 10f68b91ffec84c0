"""On-target knockdown quality control: did each perturbation lower the expression of its target?"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lazypert.quality.config import KnockdownFilterConfig
from lazypert.quality.contexts import Contexts
from lazypert.quality.control_strata import ControlStrata
from lazypert.quality.target_expression import gather_target_expression
from lazypert.quality.target_map import targets_of_labels
from lazypert.quality.unmeasured import hint, require_targets
from lazypert.quality.value_scale import require_comparable
from lazypert.quality.verdicts import NOT_MEASURED, Verdict, judge, judge_parts
from lazypert.screen.gene_alignment import gene_labels
from lazypert.screen.targets import part_columns, target_parts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lazypert.quality.verdicts import Evidence
    from lazypert.screen.groups import Groups
    from lazypert.screen.targets import TargetPart
    from lazypert.sources.base import PerturbationSource


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


@dataclass(frozen=True, slots=True, eq=False)
class KnockdownResult:
    """Outcome of knockdown quality control.

    Attributes
    ----------
    mask
        (n_obs,) bool by store row: whether the cell passes. Controls always pass.
    table
        One row per perturbation, without the controls, or with `verdict_by` one per context and perturbation, which
        starts with the columns ``dataset`` or ``cell_type``: ``perturbation``, ``n_cells``, ``n_compared`` (cells whose
        target was measured and that have controls to compare with; the others do not pass), ``control_mean`` and
        ``perturbed_mean`` (in `units`), ``residual_expression`` (their ratio; NaN where it is undefined), ``n_kept``,
        ``passed``, ``reason``.
    n_unlabelled
        Cells without a perturbation or cell type; they do not pass.
    units
        What the means are means of: ``"counts"``, ``"log1p values"`` or ``"normalised values"``, guessed from the
        values; or ``"counts per 10,000"`` of normalised depth. Ratios of log1p values are closer to 1 than those of
        counts.
    config
        Options of the filter, with the layer that was read.
    """

    mask: NDArray[np.bool_]
    table: pd.DataFrame
    n_unlabelled: int
    units: str = "expression"
    config: KnockdownFilterConfig = field(default_factory=KnockdownFilterConfig)

    def __repr__(self) -> str:
        passed = int(self.table["passed"].sum())
        by = f" by {' and '.join(self.config.verdict_by)}" if self.config.verdict_by else ""
        return (
            f"KnockdownResult({passed} of {len(self.table)} perturbations{by} pass, "
            f"{int(self.mask.sum()):,} of {len(self.mask):,} cells, by means of {self.units})"
        )


class OnTargetKnockdownFilter:
    """Three-stage knockdown filter.

    1. Keep a perturbation if ``mean(own gene) / mean(own gene in controls) < residual_expression``.
    2. In those, keep a cell if ``own gene / mean(own gene in controls) < cell_residual_expression``.
    3. Drop perturbations with fewer than ``min_cells`` cells left.

    Perturbations whose gene is not measured or not expressed in controls are dropped, and the result gives the reason.
    Labels without a target gene (such as ``unassigned``) count as not measured; `targets` names the genes of guides and
    drugs. Combinations are judged by their parts, if the screen was opened or converted with a `separator`: each part's
    target has to pass, in the same cells. So has each of several genes of a label. If several genes share a name, the
    first is used. Cells without controls to compare with, or whose controls have a mean that is not finite, do not
    pass, and do not change the verdict on other cells.

    With ``direction="up"`` the ratios must be above ``1 / residual_expression`` and ``1 / cell_residual_expression``;
    with ``"both"`` a perturbation passes stage 1 in either direction, and stage 2 judges its cells in the same one.

    References
    ----------
    cell-load, ``filter_on_target_knockdown`` (Arc Institute). It filters file by file, as
    ``verdict_by=("dataset",)`` does.
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
        ConfigError
            When no perturbation is named after a gene, values are negative, or datasets that are judged together
            differ in scale.
        NotCountsError
            When `normalise_depth` meets log1p values.
        """
        config, groups = self.config, source.groups
        if config.layer is None:
            config = replace(config, layer=source.config.layer)
        units = require_comparable(source, config)
        var = source.layer_var(config.layer)
        genes = gene_labels(var, config.var_gene_col)
        parts = target_parts(groups, targets_of_labels(config.targets, source))
        columns = list(_target_columns(parts, genes, gene_labels(var, None)))
        contexts = Contexts.of(groups, config.verdict_by)
        to_judge = list(contexts.perturbations(groups))
        judged = np.unique([code for _, code, _ in to_judge]).astype(np.int64)
        require_targets(groups, judged, parts, np.max(columns, axis=0), var, config.var_gene_col)
        evidence = _Evidence.gather(source, config, contexts, columns)
        mask, rows_of_table, known = groups.expand(groups.is_control & (groups.ids >= 0), source.n_rows), [], set(genes)
        for context, code, runs in to_judge:
            rows, label = groups.rows(runs)[:], str(groups.labels["perturbation"][code])
            if len(parts[code]) > 1:
                of_parts = [evidence.of(k + 1, rows, runs, code) for k in range(len(parts[code]))]
                verdict, kept = judge_parts(config, label, [part.name for part in parts[code]], of_parts)
            else:
                verdict, kept = judge(config, label, *evidence.of(0, rows, runs, code))
            if verdict.reason == NOT_MEASURED:
                verdict.reason += hint(label, known)
            rows_of_table.append(contexts.labels[context] | asdict(verdict))
            mask[rows[kept]] = True
        table = pd.DataFrame(rows_of_table, columns=[*config.verdict_by, *(column.name for column in fields(Verdict))])
        return KnockdownResult(mask, table, groups.n_unlabelled, units, config)


def _target_columns(
    parts: list[tuple[TargetPart, ...]], gene_names: NDArray[np.str_], index_names: NDArray[np.str_]
) -> Iterator[NDArray[np.int64]]:
    """Yield the (n_perturbations,) columns of the targets of labels with one, then of each target of the others."""
    yield part_columns([part[0] if len(part) == 1 else None for part in parts], gene_names, index_names)
    n_parts = max(map(len, parts), default=0)
    for number in range(n_parts if n_parts > 1 else 0):
        chosen = [part[number] if 1 < len(part) > number else None for part in parts]
        yield part_columns(chosen, gene_names, index_names)


@dataclass(frozen=True, slots=True, eq=False)
class _Evidence:
    """Expression of targets in cells and in their controls.

    Attributes
    ----------
    own
        For each list of targets, (n_obs,) expression of each cell's own target.
    control_mean
        For each list of targets, (n_strata, n_perturbations) mean of each target in the controls of a stratum.
    strata
        Which controls each cell is compared with.
    groups
        Groups of the cells.
    """

    own: list[NDArray[Any]]
    control_mean: list[NDArray[np.float64]]
    strata: ControlStrata
    groups: Groups

    @classmethod
    def gather(
        cls,
        source: PerturbationSource,
        config: KnockdownFilterConfig,
        contexts: Contexts,
        columns: list[NDArray[np.int64]],
    ) -> _Evidence:
        """Look up, or read, each list of (n_perturbations,) target columns: of single labels, then of each part."""
        groups = source.groups
        strata = ControlStrata.of(groups, config.control_match, contexts)
        own, control_mean = [], []
        for targets in columns:
            expression = gather_target_expression(
                source, groups, targets, strata, config.layer, normalise_depth=config.normalise_depth
            )
            own.append(expression.own)
            control_mean.append(expression.control_means(strata.wider))
        return cls(own, control_mean, strata, groups)

    def of(self, number: int, rows: NDArray[np.integer], runs: NDArray[np.int64], code: int) -> Evidence:
        """Evidence on one perturbation by one of the lists, in the rows of its runs."""
        run = np.repeat(runs, self.groups.sizes[runs])
        batch = None if self.strata.batch_keys is None else self.groups.batch_of(rows)
        return self.own[number][rows], self.control_mean[number][self.strata.of_cells(run, batch), code]
