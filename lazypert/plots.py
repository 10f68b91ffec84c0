"""Pictures of what the engine finds: groups and splits, knockdown QC, downsampling.

Every function takes results and returns a `matplotlib.figure.Figure` that belongs to no global state:
save it with ``figure.savefig("name.png")``, or let a notebook show it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.randomness import generator
from lazypert.design.splits import SPLITS, SplitResult
from lazypert.errors import ConfigError, LazypertError
from lazypert.quality import (
    FEW,
    NO_CONTROL_EXPRESSION,
    NOT_MEASURED,
    PASSED,
    WEAK,
    KnockdownFilterConfig,
    KnockdownResult,
)
from lazypert.screen.targets import target_genes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import jax
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.sources.base import PerturbationSource

# Okabe and Ito's palette: told apart by colour-blind readers, and in grey.
BLUE, ORANGE, VERMILLION, SKY, GREEN, GREY = "#0072B2", "#E69F00", "#D55E00", "#56B4E9", "#009E73", "#8C8C8C"
SPLIT_COLOURS = {"train": BLUE, "valid": ORANGE, "test": "#CC79A7"}
REASON_COLOURS = {PASSED: BLUE, WEAK: VERMILLION, FEW: ORANGE}

_STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "figure.titlesize": 10,
}
_TOP_PERTURBATIONS, _TOP_CELL_TYPES = 40, 12
# Ratios beyond this are drawn at the edge: they are no knockdown, whatever their size.
_RATIO_EDGE = 2.0


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure as Canvas
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise LazypertError(
            'Pictures need matplotlib, which is not installed. Install it: pip install "lazypert[plot]"'
        ) from error
    return Canvas(figsize=(width, height), dpi=160, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.07))


def _styled() -> Any:
    try:
        from matplotlib import rc_context
    except ImportError:
        from contextlib import nullcontext

        return nullcontext()  # `_figure` says what is missing
    return rc_context(_STYLE)


# -- groups and splits ----------------------------------------------------------------------------


def plot_splits(
    groups: Groups, splits: Mapping[str, SplitResult] | None = None, *, top: int = _TOP_PERTURBATIONS
) -> Figure:
    """Draw the size of every group, and how each split divides it.

    Parameters
    ----------
    groups
        A screen's groups.
    splits
        Splits of that screen, by the title of their panel.
    top
        Perturbations shown: controls, those held out (all of their cells are test), then the largest.

    Returns
    -------
    A figure with one panel of cell types (rows) by perturbations (columns) for the sizes in cells, and
    one for each split, in which every group is a bar of its training, validation and test shares.

    Raises
    ------
    LazypertError
        When matplotlib is not installed.
    """
    splits = dict(splits or {})
    keep = groups.ids >= 0
    sizes = _per_group(groups, np.where(keep, groups.sizes, 0))
    parts = {title: np.stack([_cells_of(groups, split[name]) for name in SPLITS]) for title, split in splits.items()}
    types, perts = _shown(groups, sizes, list(parts.values()), top)
    sizes_shown = sizes[types[:, None], perts]
    names = groups.labels["perturbation"][perts]
    n_panels = 1 + len(parts)
    with _styled():
        row = max(0.24, min(0.34, 3.6 / len(types)))
        figure = _figure(
            min(15.0, max(6.5, 1.8 + 0.31 * len(perts))),
            1.1 + 0.055 * min(20, max(map(len, names), default=1)) + n_panels * (0.42 + row * len(types)),
        )
        axes = figure.subplots(n_panels, 1, squeeze=False, sharex=True)[:, 0]
        _draw_sizes(axes[0], sizes_shown)
        axes[0].set_title(f"Cells in each group: {int(sizes.sum()):,} cells, {np.count_nonzero(sizes):,} groups")
        for ax, (title, counts) in zip(axes[1:], parts.items(), strict=True):
            _draw_shares(ax, counts[:, types[:, None], perts], sizes_shown)
            totals = ", ".join(f"{name} {int(counts[i].sum()):,}" for i, name in enumerate(SPLITS))
            ax.set_title(f"{title}: {totals}")
        for ax in axes:
            _label_grid(ax, groups, types, perts, sizes)
        for tick, code in zip(axes[-1].get_xticklabels(), perts, strict=True):
            tick.set_fontweight("bold" if code == groups.control_code else "normal")
        axes[-1].set_xlabel(_columns_label(groups, sizes, perts))
        if parts:
            _split_legend(figure)
    return figure


def _per_group(groups: Groups, per_run: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n_cell_types, n_perturbations) sum over the runs of each group."""
    out = np.zeros((len(groups.labels["cell_type"]), len(groups.labels["perturbation"])), dtype=np.int64)
    keep = groups.ids >= 0
    np.add.at(out, (groups.codes["cell_type"][keep], groups.codes["perturbation"][keep]), per_run[keep])
    return out


def _cells_of(groups: Groups, rows: Any) -> NDArray[np.int64]:
    """(n_cell_types, n_perturbations) cells of a split, from its intervals alone."""
    per_run = np.zeros(len(groups.start), dtype=np.int64)
    np.add.at(per_run, groups.run_of(rows.starts), rows.stops - rows.starts)
    return _per_group(groups, per_run)


def _shown(
    groups: Groups, sizes: NDArray[np.int64], parts: Sequence[NDArray[np.int64]], top: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cell types and perturbations to draw, in order."""
    per_pert, per_type = sizes.sum(axis=0), sizes.sum(axis=1)
    held = np.zeros(len(per_pert), dtype=bool)
    for counts in parts:
        held |= (counts[SPLITS.index("test")].sum(axis=0) == per_pert) & (per_pert > 0)
    control = np.arange(len(per_pert)) == groups.control_code
    order = np.lexsort((np.arange(len(per_pert)), -per_pert, ~held, ~control))
    order = order[per_pert[order] > 0][: max(1, top)]
    types = np.lexsort((np.arange(len(per_type)), -per_type))
    return types[per_type[types] > 0][:_TOP_CELL_TYPES], order


def _draw_sizes(ax: Axes, sizes: NDArray[np.int64]) -> None:
    """Draw tiles whose grey says, and whose text gives, the number of cells; colours are for splits."""
    filled = sizes[sizes > 0]
    low, high = (int(filled.min()), int(filled.max())) if filled.size else (1, 1)
    scale = np.log if high > 10 * low else np.asarray
    depth = (scale(np.maximum(sizes, 1)) - scale(low)) / max(float(scale(high) - scale(low)), 1e-9)
    # Pale enough for black text, dark enough to differ from the blank of an empty group.
    shade = np.ma.array(0.1 + 0.25 * depth, mask=sizes == 0)
    ax.imshow(shade, cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="none")
    size = 7.0 if sizes.shape[1] <= 20 else 5.5
    for (y, x), n in np.ndenumerate(sizes):
        if n:
            ax.text(x, y, _short(int(n)), ha="center", va="center", size=size, in_layout=False)
    for line in range(1, sizes.shape[1]):
        ax.axvline(line - 0.5, color="white", lw=1.5)
    for line in range(1, sizes.shape[0]):
        ax.axhline(line - 0.5, color="white", lw=1.5)


def _draw_shares(ax: Axes, counts: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
    """Fill the tile of each group from left to right with the colours of its splits."""
    from matplotlib.collections import PolyCollection

    y, x = np.nonzero(sizes)
    left = x - 0.46
    rest = sizes - counts.sum(axis=0)
    for part, colour in zip((*counts, rest), (*SPLIT_COLOURS.values(), "#E6E6E6"), strict=True):
        right = left + 0.92 * part[y, x] / sizes[y, x]
        corners = [(left, y - 0.42), (right, y - 0.42), (right, y + 0.42), (left, y + 0.42)]
        tiles = np.moveaxis(np.array(corners, dtype=np.float64), 2, 0)[right > left]
        ax.add_collection(PolyCollection(list(tiles), facecolor=colour, linewidth=0))
        left = right


def _label_grid(
    ax: Axes, groups: Groups, types: NDArray[np.int64], perts: NDArray[np.int64], sizes: NDArray[np.int64]
) -> None:
    rows = [f"{label}" for label in groups.labels["cell_type"][types]]
    hidden = int((sizes.sum(axis=1) > 0).sum()) - len(types)
    ax.set_yticks(range(len(types)), rows)
    ax.set_ylabel("cell type" + (f"\n({hidden:,} more)" if hidden else ""))
    ax.set_ylim(len(types) - 0.5, -0.5)
    ax.set_xlim(-0.5, len(perts) - 0.5)
    many = len(perts) > 12
    labels = [_cut(str(label)) for label in groups.labels["perturbation"][perts]]
    ax.set_xticks(range(len(perts)), labels, rotation=90 if many else 0)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _columns_label(groups: Groups, sizes: NDArray[np.int64], perts: NDArray[np.int64]) -> str:
    label = "perturbation" + (" (controls in bold)" if groups.control_code in perts else "")
    label += "; blank: no cells" if (sizes[:, perts] == 0).any() else ""
    per_pert = sizes.sum(axis=0)
    hidden = int((per_pert > 0).sum()) - len(perts)
    if hidden:
        cells = int(per_pert.sum() - per_pert[perts].sum())
        label += f"; {hidden:,} more, with {cells:,} cells, are not shown"
    return label


def _split_legend(figure: Figure) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=SPLIT_COLOURS[name], label=name) for name in SPLITS]
    figure.legend(handles=handles, loc="outside lower right", ncols=len(SPLITS), title=None)


# -- knockdown ------------------------------------------------------------------------------------


def sample_cell_residuals(
    source: PerturbationSource,
    result: KnockdownResult,
    *,
    var_gene_col: str | None = None,
    cells: int = 200,
    perturbations: int = _TOP_PERTURBATIONS,
    seed: int = 42,
) -> dict[str, NDArray[np.float64]]:
    """Read the own-target expression of some cells, as a ratio to the control mean.

    Parameters
    ----------
    source
        The screen that `result` is of.
    var_gene_col
        As it was for the filter.
    cells
        At most so many cells of a perturbation, at random.
    perturbations
        At most so many perturbations, evenly over the range of residual expression.
    seed
        Decides which cells.

    Returns
    -------
    For each perturbation with a residual expression: (n,) ratios.
    """
    table = result.table[np.isfinite(result.table["residual_expression"])].sort_values("residual_expression")
    picked = np.unique(np.linspace(0, len(table) - 1, min(len(table), perturbations)).round().astype(int))
    groups, rng, out = source.groups, generator(seed), {}
    genes = target_genes(groups, source.gene_labels(var_gene_col))
    for line in table.iloc[picked].itertuples():
        code = groups.code_of("perturbation", line.perturbation)
        rows = groups.rows((groups.codes["perturbation"] == code) & (groups.ids >= 0))
        chosen = np.sort(rng.choice(len(rows), min(len(rows), cells), replace=False))
        block = source.matrix.read_rows(np.sort(rows[chosen]))
        column = np.full(block.n_cols, -1, dtype=np.int32)
        column[genes[code]] = 0
        out[line.perturbation] = block.select_cols(column, 1).to_dense(np.float64)[:, 0] / line.control_mean
    return out


def plot_knockdown(
    result: KnockdownResult,
    *,
    config: KnockdownFilterConfig | None = None,
    cell_residuals: Mapping[str, NDArray[np.floating[Any]]] | None = None,
    units: str = "expression",
    top: int = _TOP_PERTURBATIONS,
) -> Figure:
    """Draw the residual expression of every perturbation's target, and of single cells.

    Parameters
    ----------
    result
        What the filter found.
    config
        The filter's options, for the thresholds; the defaults if not given.
    cell_residuals
        Ratios of single cells by perturbation, as from `sample_cell_residuals`; adds a panel.
    units
        What the matrix holds, for the labels: ``"counts"``, say.
    top
        With more perturbations than this they are drawn by rank, without their names.

    Returns
    -------
    A figure. Ratios above 2 are drawn as arrows at the edge.

    Raises
    ------
    LazypertError
        When matplotlib is not installed.
    """
    config = config or KnockdownFilterConfig()
    table = result.table[np.isfinite(result.table["residual_expression"])]
    table = table.sort_values("residual_expression", kind="stable").reset_index(drop=True)
    named = len(table) <= top
    cell_residuals = {k: v for k, v in (cell_residuals or {}).items() if len(v)}
    with _styled():
        figure = _figure(8.6 if cell_residuals else 5.2, 1.9 + (0.17 * max(6, len(table)) if named else 3.0))
        axes = figure.subplots(1, 1 + bool(cell_residuals), squeeze=False, sharey=named and bool(cell_residuals))[0]
        _draw_residuals(axes[0], table, config, units, named=named)
        if cell_residuals and named:
            _draw_cells(axes[1], table, cell_residuals, config)
        elif cell_residuals:
            _draw_histogram(axes[1], cell_residuals, config)
        n, n_passed = len(result.table), int(result.table["passed"].sum())
        kept = int(result.table["n_kept"].sum())
        figure.suptitle(
            f"On-target knockdown: {n_passed:,} of {n:,} perturbations pass, with {kept:,} of "
            f"{int(result.table['n_cells'].sum()):,} cells",
            x=0.01,
            ha="left",
            weight="bold",
        )
        note = _left_out(result)
        if len(table):
            columns = len(REASON_COLOURS)
            figure.legend(
                loc="outside lower left",
                title=note,
                title_fontsize=7,
                alignment="left",
                ncols=columns,
                handletextpad=0.2,
            )
        else:
            figure.supxlabel(note, x=0.01, ha="left", size=7)
    return figure


def _reason(text: str) -> str:
    return next((kind for kind in (PASSED, WEAK, FEW) if text.startswith(kind)), text)


def _draw_residuals(ax: Axes, table: Any, config: KnockdownFilterConfig, units: str, *, named: bool) -> None:
    y, value = np.arange(len(table)), table["residual_expression"].to_numpy(dtype=np.float64)
    shown, size = np.minimum(value, _RATIO_EDGE), 26 if named else 6
    kinds = np.array([_reason(text) for text in table["reason"]], dtype=object)
    for kind, colour in REASON_COLOURS.items():
        for far, marker in ((False, "o"), (True, ">")):
            chosen = (kinds == kind) & ((value > _RATIO_EDGE) == far)
            label = f"{kind} ({int((kinds == kind).sum()):,})" if not far and (kinds == kind).any() else None
            if named:
                ax.hlines(y[chosen], 0, shown[chosen], color=colour, lw=1.2, alpha=0.6)
            ax.scatter(
                shown[chosen], y[chosen], s=size, color=colour, marker=marker, label=label, zorder=3, clip_on=False
            )
    for place in np.flatnonzero(value > _RATIO_EDGE) if named else ():
        ax.text(_RATIO_EDGE * 0.97, float(place), f"{value[place]:.1f}", ha="right", va="bottom", size=6)
    _threshold(ax, config.residual_expression)
    if len(value) and value.max() > 0.75:
        ax.axvline(1, color=GREY, lw=0.8, ls=":", zorder=0)
    ax.set_xlim(0, max(1.0, min(_RATIO_EDGE, float(shown.max(initial=0)) * 1.05)))
    ax.set_xlabel(f"residual expression of the target\n(mean {units} in its cells / mean in controls)")
    if named:
        ax.set_yticks(y, [_cut(str(name)) for name in table["perturbation"]])
        ax.set_ylabel("perturbation")
        ax.tick_params(axis="y", length=0)
    else:
        ax.set_ylabel(f"perturbations, sorted (n = {len(table):,})")
    ax.set_ylim(max(len(table), 1) - 0.5, -0.5)
    ax.set_title("Perturbations", pad=12)
    if not len(table):
        ax.text(0.5, 0.5, "no target was measured in controls", transform=ax.transAxes, ha="center", color="#444444")


def _draw_cells(
    ax: Axes, table: Any, cell_residuals: Mapping[str, NDArray[np.floating[Any]]], config: KnockdownFilterConfig
) -> None:
    rng = generator(0)
    for place, name in enumerate(table["perturbation"]):
        ratio = np.asarray(cell_residuals.get(name, ()), dtype=np.float64)
        near = np.minimum(ratio, _RATIO_EDGE)
        y = place + rng.uniform(-0.32, 0.32, len(ratio))
        for kept, colour in ((True, SKY), (False, GREY)):
            chosen = (ratio < config.cell_residual_expression) == kept
            ax.scatter(near[chosen], y[chosen], s=4, color=colour, alpha=0.35, lw=0, rasterized=True, clip_on=False)
        if len(ratio):
            share = float((ratio < config.cell_residual_expression).mean())
            ax.text(1.07, place, f"{share:.0%}", transform=ax.get_yaxis_transform(), ha="right", va="center", size=6.5)
    _threshold(ax, config.cell_residual_expression)
    ax.set_xlim(-0.03, _RATIO_EDGE)
    ax.tick_params(axis="y", length=0, labelleft=False)
    ax.set_xlabel("residual expression of the target, single cells\n(cells beyond 2 are drawn at 2)")
    n = max((len(ratio) for ratio in cell_residuals.values()), default=0)
    ax.text(1.07, 1, "below", transform=ax.transAxes, ha="right", va="bottom", size=6.5)
    ax.set_title(f"Cells, at most {n:,} of each perturbation", pad=12)


def _draw_histogram(
    ax: Axes, cell_residuals: Mapping[str, NDArray[np.floating[Any]]], config: KnockdownFilterConfig
) -> None:
    ratio = np.minimum(np.concatenate(list(cell_residuals.values())), _RATIO_EDGE)
    bins = np.linspace(0, _RATIO_EDGE, 41)
    below = ratio < config.cell_residual_expression
    ax.hist([ratio[below], ratio[~below]], bins=bins.tolist(), stacked=True, color=[SKY, GREY])
    _threshold(ax, config.cell_residual_expression)
    ax.set_xlim(0, _RATIO_EDGE)
    ax.set_xlabel("residual expression of the target, single cells\n(the last bin holds all beyond 2)")
    ax.set_ylabel(f"cells, sampled from {len(cell_residuals):,} perturbations")
    ax.set_title(f"Cells: {below.mean():.0%} of {len(ratio):,} sampled are below", pad=12)


def _threshold(ax: Axes, value: float) -> None:
    ax.axvline(value, color="black", lw=1, ls="--", zorder=2)
    ax.annotate(
        f"< {value:g}",
        (value, 1),
        xycoords=("data", "axes fraction"),
        xytext=(2, 1),
        textcoords="offset points",
        size=6.5,
        va="bottom",
    )


def _left_out(result: KnockdownResult) -> str:
    """Name the perturbations that have no residual expression."""
    notes = []
    for reason in (NOT_MEASURED, NO_CONTROL_EXPRESSION):
        names = [str(name) for name in result.table["perturbation"][result.table["reason"] == reason]]
        if names:
            shown = ", ".join(map(_cut, names[:6])) + (f" and {len(names) - 6:,} more" if len(names) > 6 else "")
            notes.append(f"Not shown, {reason}: {shown}.")
    return "\n".join(notes)


# -- downsampling ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DownsamplingSweep:
    """What downsampling to several fractions did.

    Attributes
    ----------
    fractions
        (n_fractions,) probabilities of keeping a read.
    reads
        (n_fractions,) reads of all cells together after downsampling.
    total
        Reads before.
    genes
        (n_fractions, n_cells) genes detected in each cell.
    expected_variance, observed_variance
        (n_fractions, n_bins) mean over entries of like counts of ``n f (1 - f)``, and of the variance
        over repeated draws; NaN where a bin is empty.
    """

    fractions: NDArray[np.float64]
    reads: NDArray[np.float64]
    total: float
    genes: NDArray[np.int64]
    expected_variance: NDArray[np.float64]
    observed_variance: NDArray[np.float64]


def downsampling_sweep(
    counts: NDArray[Any],
    fractions: Sequence[float],
    *,
    key: jax.Array,
    draws: int = 200,
    entries: int = 2_000,
) -> DownsamplingSweep:
    """Downsample cells to several fractions, and measure totals, genes detected and variance.

    Parameters
    ----------
    counts
        (cell, gene) reads.
    fractions
        Probabilities of keeping a read.
    key
        A JAX key.
    draws, entries
        The variance is measured over so many draws of so many non-zero entries.

    Raises
    ------
    NotCountsError
        When `counts` are not whole numbers of reads.
    """
    import jax

    from lazypert.downsampling.config import DownsamplingConfig
    from lazypert.downsampling.downsampler import ReadDownsampler

    if not len(fractions) or not np.size(counts):
        raise ConfigError(f"Got {len(fractions)} fractions and {np.size(counts)} counts, expected some of both.")
    flat = np.asarray(counts)[np.nonzero(counts)]
    flat = np.sort(flat)[np.unique(np.linspace(0, max(len(flat) - 1, 0), min(len(flat), entries)).astype(int))]
    bin_of = np.unique(np.floor(4 * np.log2(np.maximum(flat, 1))), return_inverse=True)[1]
    in_bin = np.bincount(bin_of)
    # One array of the shape (cell, gene) holds both: JAX compiles once for each shape.
    width = counts.shape[1]
    padded = np.pad(flat, (0, -len(flat) % width)).reshape(-1, width)
    together = np.concatenate([counts, np.tile(padded, (draws, 1))])
    reads, genes, expected, observed = [], [], [], []
    for number, fraction in enumerate(fractions):
        thin = ReadDownsampler(DownsamplingConfig(fraction=fraction))
        done = np.asarray(thin(together, key=jax.random.fold_in(key, number)))
        kept, repeated = done[: len(counts)], done[len(counts) :].reshape(draws, -1)[:, : len(flat)]
        reads.append(float(kept.sum(dtype=np.float64)))
        genes.append((kept > 0).sum(axis=1))
        variance = repeated.var(axis=0, ddof=1, dtype=np.float64)
        observed.append(np.bincount(bin_of, variance) / in_bin)
        expected.append(np.bincount(bin_of, flat * fraction * (1 - fraction)) / in_bin)
    return DownsamplingSweep(
        fractions=np.asarray(fractions, dtype=np.float64),
        reads=np.array(reads),
        total=float(np.sum(counts, dtype=np.float64)),
        genes=np.array(genes),
        expected_variance=np.array(expected),
        observed_variance=np.array(observed),
    )


def plot_downsampling(sweep: DownsamplingSweep) -> Figure:
    """Draw reads, variance and genes detected against the fraction of reads kept.

    Raises
    ------
    LazypertError
        When matplotlib is not installed.
    """
    with _styled():
        figure = _figure(10.2, 3.3)
        left, middle, right = figure.subplots(1, 3)
        left.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--", label="identity")
        left.plot(sweep.fractions, sweep.reads / sweep.total, "o", color=BLUE, ms=6, label="observed")
        left.set(
            xlim=(0, 1.05), ylim=(0, 1.05), xlabel="fraction of reads kept, f", ylabel="total reads / reads before"
        )
        left.set_title(f"Reads: {_short(int(sweep.total))} in {sweep.genes.shape[1]:,} cells")
        left.legend(loc="upper left")
        _draw_variance(middle, sweep)
        _draw_genes(right, sweep)
    return figure


def _draw_variance(ax: Axes, sweep: DownsamplingSweep) -> None:
    order = np.argsort(-sweep.fractions)
    styles = zip(
        (BLUE, VERMILLION, GREEN, ORANGE, SKY) * len(order), ("o", "s", "^", "D", "v") * len(order), strict=True
    )
    seen = []
    for index in order:
        expected, observed = sweep.expected_variance[index], sweep.observed_variance[index]
        drawn = (expected > 0) & (observed > 0)
        if not drawn.any():
            continue
        colour, marker = next(styles)
        label = f"f = {sweep.fractions[index]:g}"
        ax.plot(expected[drawn], observed[drawn], marker, color=colour, ms=4.5, alpha=0.85, mew=0, label=label)
        seen += [expected[drawn], observed[drawn]]
    ax.set(xlabel="binomial variance, n f (1 - f)  (reads²)", ylabel="variance over draws  (reads²)")
    ax.set_title("Variance, entries of n reads")
    if seen:
        every = np.concatenate(seen)
        ends = [every.min() / 1.3, every.max() * 1.3]
        ax.plot(ends, ends, color=GREY, lw=1, ls="--", zorder=0)
        ax.set(xscale="log", yscale="log")
        ax.legend(loc="upper left", handletextpad=0.1)


def _draw_genes(ax: Axes, sweep: DownsamplingSweep) -> None:
    order = np.argsort(sweep.fractions)
    low, middle, high = np.quantile(sweep.genes[order], (0.05, 0.5, 0.95), axis=1)
    fractions = sweep.fractions[order]
    ax.fill_between(fractions, low, high, color=SKY, alpha=0.35, lw=0, label="5 to 95 % of cells")
    ax.plot(fractions, middle, "o-", color=BLUE, ms=5, lw=1.2, label="median")
    ax.set(xlim=(0, 1.05), ylim=(0, None), xlabel="fraction of reads kept, f", ylabel="genes detected per cell")
    ax.set_title("Genes detected")
    ax.legend(loc="lower right")


# -- text -----------------------------------------------------------------------------------------


def _short(n: int) -> str:
    if n < 10_000:
        return str(n)
    return f"{n / 1_000:.0f}k" if n < 1_000_000 else f"{n / 1_000_000:.1f}M"


def _cut(label: str, length: int = 20) -> str:
    return label if len(label) <= length else f"{label[: length - 1]}…"
