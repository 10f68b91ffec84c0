"""Figure of knockdown quality control."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.randomness import generator
from lazypert.plots.style import (
    BLUE,
    GREY,
    MAX_PERTURBATIONS,
    ORANGE,
    SKY,
    VERMILLION,
    new_figure,
    shorten,
    style_context,
)
from lazypert.quality.contexts import Contexts
from lazypert.quality.target_expression import per_total
from lazypert.quality.target_map import targets_of_labels
from lazypert.quality.verdicts import (
    NO_CONTROLS,
    NOT_EXPRESSED,
    NOT_MEASURED,
    PASSED,
    TOO_FEW_CELLS,
    TOO_HIGH,
    TOO_LOW,
    UNCHANGED,
)
from lazypert.screen.gene_alignment import gene_labels
from lazypert.screen.targets import part_columns, target_parts

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from lazypert.quality import KnockdownFilterConfig, KnockdownResult
    from lazypert.quality.config import Direction
    from lazypert.sources.base import PerturbationSource

REASON_COLOURS = {
    PASSED: BLUE,
    TOO_HIGH: VERMILLION,
    TOO_LOW: VERMILLION,
    UNCHANGED: VERMILLION,
    TOO_FEW_CELLS: ORANGE,
}
"""Colours of verdicts; the kinds of refusal that share one never occur together."""

_CHANGES = {"down": "knockdown", "up": "activation", "both": "effect"}
_SIDES = {"down": "below", "up": "above", "both": "beyond"}
_CHANGE_OF = {"<": "down", ">": "up"}


def sample_cell_residuals(
    source: PerturbationSource,
    result: KnockdownResult,
    *,
    var_gene_col: str | None = None,
    cells: int = 200,
    perturbations: int = MAX_PERTURBATIONS,
    seed: int = 42,
) -> dict[str, NDArray[np.float64]]:
    """Read the own-target expression of a sample of cells, as a ratio to the control mean.

    Parameters
    ----------
    source
        The screen that `result` describes.
    var_gene_col
        The filter's `var_gene_col`; None uses that of ``result.config``.
    cells
        Sample at most this many cells per perturbation.
    perturbations
        Sample at most this many perturbations, evenly over the range of residual expression.
    seed
        Determines which cells are sampled.

    Returns
    -------
    (n,) ratios of each sampled perturbation; only those with a residual expression are sampled. With `verdict_by`, a
    perturbation is named with its context, such as ``"TP53 / screen1 / K562"``.
    """
    table = result.table[np.isfinite(result.table["residual_expression"])].sort_values("residual_expression")
    sampled = np.unique(np.linspace(0, len(table) - 1, min(len(table), perturbations)).round().astype(int))
    groups, rng, ratios, config = source.groups, generator(seed), {}, result.config
    var = source.layer_var(config.layer)
    genes = gene_labels(var, var_gene_col or config.var_gene_col)
    parts = target_parts(groups, targets_of_labels(config.targets, source))
    single = [part[0] if len(part) == 1 else None for part in parts]
    target_column = part_columns(single, genes, gene_labels(var, None))
    contexts = Contexts.of(groups, config.verdict_by)
    runs_of = {
        " / ".join(map(str, [groups.labels["perturbation"][code], *contexts.labels[context].values()])): (code, runs)
        for context, code, runs in contexts.perturbations(groups)
    }
    for name, control_mean in zip(_row_names(table).iloc[sampled], table["control_mean"].iloc[sampled], strict=True):
        code, runs = runs_of[name]
        if target_column[code] < 0:
            continue  # a combination or a drug with several targets
        rows = groups.rows(runs)
        chosen = np.sort(rows[np.sort(rng.choice(len(rows), min(len(rows), cells), replace=False))])
        own = _read_gene(source, chosen, int(target_column[code]), config)
        ratios[name] = own[~np.isnan(own)] / control_mean
    return ratios


def _read_gene(
    source: PerturbationSource, rows: NDArray[np.int64], gene: int, config: KnockdownFilterConfig
) -> NDArray[np.float64]:
    """(n,) values of one gene in cells by store row, as the filter reads them; NaN where it was not measured."""
    values = np.full(len(rows), np.nan)
    for segment in source.segments(config.layer):
        first, column = segment.first_row, segment.column_of[gene]
        inside = np.flatnonzero((rows >= first) & (rows < first + segment.matrix.shape[0]))
        if column < 0 or not len(inside):
            continue
        block = segment.matrix.read_rows(rows[inside] - first)
        data = per_total(block) if config.normalise_depth else block.data
        new_col = np.full(block.n_cols, -1, dtype=np.int32)
        new_col[column] = 0
        values[inside] = replace(block, data=data).select_cols(new_col, 1).to_dense(np.float64)[:, 0]
    return values


def _row_names(table: pd.DataFrame) -> pd.Series[str]:
    """Name of each row: its perturbation and, where contexts are judged on their own, its context."""
    names = table["perturbation"].astype(str)
    for axis in table.columns[: table.columns.get_loc("perturbation")]:
        names = names + " / " + table[axis].astype(str)
    return names


def plot_knockdown(
    result: KnockdownResult,
    *,
    config: KnockdownFilterConfig | None = None,
    cell_residuals: Mapping[str, NDArray[np.floating[Any]]] | None = None,
    units: str | None = None,
    top: int = MAX_PERTURBATIONS,
) -> Figure:
    """Draw the residual expression of every perturbation's target, and of single cells.

    Parameters
    ----------
    result
        Result of the filter.
    config
        The filter's options, for the thresholds; None uses ``result.config``.
    cell_residuals
        Ratios of single cells by perturbation, as from `sample_cell_residuals`; adds a panel.
    units
        What the matrix holds, for the axis label, such as ``"counts"``; None uses ``result.units``.
    top
        If there are more perturbations than this, they are drawn by rank, without their names.

    Returns
    -------
    A figure. Ratios above 2, or above 1.5 times the limit of an activation, are drawn as arrows at the edge.

    Raises
    ------
    LazypertError
        When matplotlib is not installed.
    """
    config, units = config or result.config, units or result.units
    table = result.table[np.isfinite(result.table["residual_expression"])]
    table = table.sort_values("residual_expression", kind="stable").reset_index(drop=True)
    table["perturbation"] = _row_names(table)
    named = len(table) <= top
    cell_residuals = {label: ratios for label, ratios in (cell_residuals or {}).items() if len(ratios)}
    with style_context():
        figure = new_figure(8.6 if cell_residuals else 5.2, 1.9 + (0.17 * max(6, len(table)) if named else 3.0))
        axes = figure.subplots(1, 1 + bool(cell_residuals), squeeze=False, sharey=named and bool(cell_residuals))[0]
        _draw_points(axes[0], table, config, named=named)
        _label_points(axes[0], table, units, named=named)
        if cell_residuals and named:
            _draw_cells(axes[1], table, cell_residuals, config)
        elif cell_residuals:
            _draw_histogram(axes[1], cell_residuals, config)
        figure.suptitle(_title(result), x=0.01, ha="left", weight="bold")
        hidden = _hidden_perturbations(result)
        if len(table):
            figure.legend(
                loc="outside lower left",
                title=hidden,
                title_fontsize=7,
                alignment="left",
                ncols=3,
                handletextpad=0.2,
            )
        else:
            figure.supxlabel(hidden, x=0.01, ha="left", size=7)
    return figure


def _title(result: KnockdownResult) -> str:
    table, change = result.table, _CHANGES[result.config.direction]
    return (
        f"On-target {change}: {int(table['passed'].sum()):,} of {len(table):,} perturbations pass, with "
        f"{int(table['n_kept'].sum()):,} of {int(table['n_cells'].sum()):,} cells"
    )


def _hidden_perturbations(result: KnockdownResult) -> str:
    """Name the perturbations without a residual expression, one line per reason."""
    lines = []
    names_of_rows = _row_names(result.table)
    for reason in (NOT_MEASURED, NO_CONTROLS, NOT_EXPRESSED):
        names = [n for n, text in zip(names_of_rows, result.table["reason"], strict=True) if text.startswith(reason)]
        if names:
            shown = ", ".join(map(shorten, names[:6])) + (f" and {len(names) - 6:,} more" if len(names) > 6 else "")
            lines.append(f"Not shown, {reason}: {shown}.")
    return "\n".join(lines)


def _reason_kind(reason: str) -> str:
    """Reason without its numbers."""
    return next((kind for kind in REASON_COLOURS if reason.startswith(kind)), reason)


def _draw_points(ax: Axes, table: pd.DataFrame, config: KnockdownFilterConfig, *, named: bool) -> None:
    """Draw a point per perturbation, coloured by its verdict."""
    y, ratio = np.arange(len(table)), table["residual_expression"].to_numpy(dtype=np.float64)
    limits = _limits(config.residual_expression, config.direction)
    edge = _edge(limits)
    x, size = np.minimum(ratio, edge), 26 if named else 6
    kinds = np.array([_reason_kind(text) for text in table["reason"]], dtype=object)
    for kind, colour in REASON_COLOURS.items():
        for beyond_edge, marker in ((False, "o"), (True, ">")):
            chosen = (kinds == kind) & ((ratio > edge) == beyond_edge)
            label = f"{kind} ({int((kinds == kind).sum()):,})" if not beyond_edge and (kinds == kind).any() else None
            if named:
                ax.hlines(y[chosen], 0, x[chosen], color=colour, lw=1.2, alpha=0.6)
            ax.scatter(x[chosen], y[chosen], s=size, color=colour, marker=marker, label=label, zorder=3, clip_on=False)
    for rank in np.flatnonzero(ratio > edge) if named else ():
        ax.text(edge * 0.97, float(rank), f"{ratio[rank]:.1f}", ha="right", va="bottom", size=6)
    _draw_limits(ax, limits)
    if len(ratio) and ratio.max() > 0.75:
        ax.axvline(1, color=GREY, lw=0.8, ls=":", zorder=0)
    ax.set_xlim(0, max(1.0, min(edge, max(float(x.max(initial=0)), *(limits.values())) * 1.05)))


def _label_points(ax: Axes, table: pd.DataFrame, units: str, *, named: bool) -> None:
    """Label the panel of perturbations."""
    ax.set_xlabel(f"residual expression of the target\n(mean {units} in perturbed cells / mean in controls)")
    if named:
        ax.set_yticks(np.arange(len(table)), [shorten(str(name)) for name in table["perturbation"]])
        ax.set_ylabel("perturbation")
        ax.tick_params(axis="y", length=0)
    else:
        ax.set_ylabel(f"perturbations, sorted (n = {len(table):,})")
    ax.set_ylim(max(len(table), 1) - 0.5, -0.5)
    ax.set_title("Perturbations", pad=12)
    if not len(table):
        message = "no target was measured in controls"
        ax.text(0.5, 0.5, message, transform=ax.transAxes, ha="center", color="#444444")


def _draw_cells(
    ax: Axes,
    table: pd.DataFrame,
    cell_residuals: Mapping[str, NDArray[np.floating[Any]]],
    config: KnockdownFilterConfig,
) -> None:
    """Draw a jittered point per cell beside its perturbation, and the share below the threshold."""
    rng, limits = generator(0), _limits(config.cell_residual_expression, config.direction)
    edge = _edge(limits)
    for rank, label in enumerate(table["perturbation"]):
        ratio = np.asarray(cell_residuals.get(label, ()), dtype=np.float64)
        x = np.minimum(ratio, edge)
        passes = _is_beyond(ratio, limits)
        y = rank + rng.uniform(-0.32, 0.32, len(ratio))
        for is_passing, colour in ((True, SKY), (False, GREY)):
            chosen = passes == is_passing
            ax.scatter(x[chosen], y[chosen], s=4, color=colour, alpha=0.35, lw=0, rasterized=True, clip_on=False)
        if len(ratio):
            share = f"{passes.mean():.0%}"
            ax.text(1.07, rank, share, transform=ax.get_yaxis_transform(), ha="right", va="center", size=6.5)
    _draw_limits(ax, limits)
    ax.set_xlim(-0.03, edge)
    ax.tick_params(axis="y", length=0, labelleft=False)
    ax.set_xlabel(f"residual expression of the target in single cells\n(all above {edge:.3g} are drawn at {edge:.3g})")
    n = max((len(ratio) for ratio in cell_residuals.values()), default=0)
    ax.text(1.07, 1, _SIDES[config.direction], transform=ax.transAxes, ha="right", va="bottom", size=6.5)
    ax.set_title(f"Cells, at most {n:,} per perturbation", pad=12)


def _draw_histogram(
    ax: Axes, cell_residuals: Mapping[str, NDArray[np.floating[Any]]], config: KnockdownFilterConfig
) -> None:
    """Draw the distribution over the cells of all perturbations."""
    limits = _limits(config.cell_residual_expression, config.direction)
    edge = _edge(limits)
    ratio = np.minimum(np.concatenate(list(cell_residuals.values())), edge)
    bins = np.linspace(0, edge, 41)
    passes = _is_beyond(ratio, limits)
    ax.hist([ratio[passes], ratio[~passes]], bins=bins.tolist(), stacked=True, color=[SKY, GREY])
    _draw_limits(ax, limits)
    ax.set_xlim(0, edge)
    ax.set_xlabel(
        f"residual expression of the target in single cells\n(the last bin includes all values above {edge:.3g})"
    )
    ax.set_ylabel(f"cells, sampled from {len(cell_residuals):,} perturbations")
    side = _SIDES[config.direction]
    ax.set_title(f"Cells: {passes.mean():.0%} of {len(ratio):,} sampled are {side} the threshold", pad=12)


def _limits(limit: float, direction: Direction) -> dict[str, float]:
    """Ratios to fall below (``"<"``) or to exceed (``">"``)."""
    limits = {"<": limit, ">": 1 / limit}
    return {sign: value for sign, value in limits.items() if direction == "both" or _CHANGE_OF[sign] == direction}


def _edge(limits: dict[str, float]) -> float:
    """Ratio at which larger ones are drawn: without a knockdown, or far beyond the limit of an activation."""
    return max(2.0, 1.5 * limits.get(">", 0))


def _is_beyond(ratio: NDArray[np.floating[Any]], limits: dict[str, float]) -> NDArray[np.bool_]:
    """(n,) bool: whether each ratio is beyond one of the limits."""
    return (ratio < limits.get("<", -np.inf)) | (ratio > limits.get(">", np.inf))


def _draw_limits(ax: Axes, limits: dict[str, float]) -> None:
    for sign, value in limits.items():
        ax.axvline(value, color="black", lw=1, ls="--", zorder=2)
        ax.annotate(
            f"{sign} {value:.3g}",
            (value, 1),
            xycoords=("data", "axes fraction"),
            xytext=(2, 1),
            textcoords="offset points",
            size=6.5,
            va="bottom",
        )
