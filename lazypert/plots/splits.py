"""Figure of the groups of a screen, and how splits divide them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lazypert.plots.style import (
    BLUE,
    MAX_PERTURBATIONS,
    ORANGE,
    PURPLE,
    format_count,
    new_figure,
    shorten,
    style_context,
)
from lazypert.splits.names import SPLITS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.screen.rows import Rows
    from lazypert.splits.split_result import SplitResult

SPLIT_COLOURS = {"train": BLUE, "valid": ORANGE, "test": PURPLE}
_IN_NO_SPLIT = "#E6E6E6"
_MAX_CELL_TYPES = 12


def plot_splits(
    groups: Groups, splits: Mapping[str, SplitResult] | None = None, *, top: int = MAX_PERTURBATIONS
) -> Figure:
    """Draw the size of every group, and how each split divides it.

    Parameters
    ----------
    groups
        A screen's groups.
    splits
        Splits of that screen, keyed by the title of their panel.
    top
        How many perturbations to show: first the control, then those held out (all of their cells are
        test), then the largest.

    Returns
    -------
    A figure with one panel of group sizes, cell types (rows) by perturbations (columns), and one panel
    per split in which every group is a bar of its training, validation and test shares.

    Raises
    ------
    LazypertError
        When matplotlib is not installed.
    """
    splits = dict(splits or {})
    sizes = _per_group(groups, np.where(groups.ids >= 0, groups.sizes, 0))
    counts_of = {
        title: np.stack([_cells_in_split(groups, split[name]) for name in SPLITS]) for title, split in splits.items()
    }
    types, perts = _choose_shown(groups, sizes, list(counts_of.values()), top)
    sizes_shown = sizes[types[:, None], perts]
    names = groups.labels["perturbation"][perts]
    n_panels = 1 + len(counts_of)
    with style_context():
        row_height = max(0.24, min(0.34, 3.6 / len(types)))
        figure = new_figure(
            min(15.0, max(6.5, 1.8 + 0.31 * len(perts))),
            1.1 + 0.055 * min(20, max(map(len, names), default=1)) + n_panels * (0.42 + row_height * len(types)),
        )
        axes = figure.subplots(n_panels, 1, squeeze=False, sharex=True)[:, 0]
        _draw_sizes(axes[0], sizes_shown)
        axes[0].set_title(f"Cells per group: {int(sizes.sum()):,} cells, {np.count_nonzero(sizes):,} groups")
        for ax, (title, counts) in zip(axes[1:], counts_of.items(), strict=True):
            _draw_shares(ax, counts[:, types[:, None], perts], sizes_shown)
            totals = ", ".join(f"{name} {int(counts[i].sum()):,}" for i, name in enumerate(SPLITS))
            ax.set_title(f"{title}: {totals}")
        for ax in axes:
            _label_grid(ax, groups, types, perts, sizes)
        for tick, code in zip(axes[-1].get_xticklabels(), perts, strict=True):
            tick.set_fontweight("bold" if groups.is_control_code[code] else "normal")
        axes[-1].set_xlabel(_columns_label(groups, sizes, perts))
        if splits:
            _add_legend(figure)
    return figure


def _per_group(groups: Groups, per_run: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n_cell_types, n_perturbations) sum over the runs of each group."""
    out = np.zeros((len(groups.labels["cell_type"]), len(groups.labels["perturbation"])), dtype=np.int64)
    in_group = groups.ids >= 0
    np.add.at(out, (groups.codes["cell_type"][in_group], groups.codes["perturbation"][in_group]), per_run[in_group])
    return out


def _cells_in_split(groups: Groups, rows: Rows) -> NDArray[np.int64]:
    """(n_cell_types, n_perturbations) cells of a split, computed from its intervals alone."""
    per_run = np.zeros(len(groups.start), dtype=np.int64)
    np.add.at(per_run, groups.run_of(rows.starts), rows.stops - rows.starts)
    return _per_group(groups, per_run)


def _choose_shown(
    groups: Groups, sizes: NDArray[np.int64], split_counts: Sequence[NDArray[np.int64]], top: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Codes of the cell types and of the perturbations to draw, in the order to draw them."""
    per_pert, per_type = sizes.sum(axis=0), sizes.sum(axis=1)
    is_held_out = np.zeros(len(per_pert), dtype=bool)
    for counts in split_counts:
        is_held_out |= (counts[SPLITS.index("test")].sum(axis=0) == per_pert) & (per_pert > 0)
    perts = np.lexsort((np.arange(len(per_pert)), -per_pert, ~is_held_out, ~groups.is_control_code))
    types = np.lexsort((np.arange(len(per_type)), -per_type))
    return types[per_type[types] > 0][:_MAX_CELL_TYPES], perts[per_pert[perts] > 0][: max(1, top)]


def _draw_sizes(ax: Axes, sizes: NDArray[np.int64]) -> None:
    """Draw a tile per group, in a grey that deepens with the number of cells written on it."""
    filled = sizes[sizes > 0]
    low, high = (int(filled.min()), int(filled.max())) if filled.size else (1, 1)
    scale = np.log if high > 10 * low else np.asarray
    depth = (scale(np.maximum(sizes, 1)) - scale(low)) / max(float(scale(high) - scale(low)), 1e-9)
    # Pale enough for black text, dark enough to differ from an empty group. Colours are reserved for splits.
    shade = np.ma.array(0.1 + 0.25 * depth, mask=sizes == 0)
    ax.imshow(shade, cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="none")
    size = 7.0 if sizes.shape[1] <= 20 else 5.5
    for (y, x), n in np.ndenumerate(sizes):
        if n:
            ax.text(x, y, format_count(int(n)), ha="center", va="center", size=size, in_layout=False)
    for line in range(1, sizes.shape[1]):
        ax.axvline(line - 0.5, color="white", lw=1.5)
    for line in range(1, sizes.shape[0]):
        ax.axhline(line - 0.5, color="white", lw=1.5)


def _draw_shares(ax: Axes, counts: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
    """Fill the tile of each group from left to right with the colours of its splits."""
    from matplotlib.collections import PolyCollection

    y, x = np.nonzero(sizes)
    left = x - 0.46
    in_no_split = sizes - counts.sum(axis=0)
    for cells, colour in zip((*counts, in_no_split), (*SPLIT_COLOURS.values(), _IN_NO_SPLIT), strict=True):
        right = left + 0.92 * cells[y, x] / sizes[y, x]
        corners = [(left, y - 0.42), (right, y - 0.42), (right, y + 0.42), (left, y + 0.42)]
        tiles = np.moveaxis(np.array(corners, dtype=np.float64), 2, 0)[right > left]
        ax.add_collection(PolyCollection(list(tiles), facecolor=colour, linewidth=0))
        left = right


def _label_grid(
    ax: Axes, groups: Groups, types: NDArray[np.int64], perts: NDArray[np.int64], sizes: NDArray[np.int64]
) -> None:
    """Name the rows and columns of a panel, and say how many cell types are hidden."""
    n_hidden = int((sizes.sum(axis=1) > 0).sum()) - len(types)
    ax.set_yticks(range(len(types)), [str(label) for label in groups.labels["cell_type"][types]])
    ax.set_ylabel("cell type" + (f"\n({n_hidden:,} more)" if n_hidden else ""))
    ax.set_ylim(len(types) - 0.5, -0.5)
    ax.set_xlim(-0.5, len(perts) - 0.5)
    labels = [shorten(str(label)) for label in groups.labels["perturbation"][perts]]
    ax.set_xticks(range(len(perts)), labels, rotation=90 if len(perts) > 12 else 0)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _columns_label(groups: Groups, sizes: NDArray[np.int64], perts: NDArray[np.int64]) -> str:
    label = "perturbation" + (" (control in bold)" if groups.is_control_code[perts].any() else "")
    label += "; blank: no cells" if (sizes[:, perts] == 0).any() else ""
    per_pert = sizes.sum(axis=0)
    n_hidden = int((per_pert > 0).sum()) - len(perts)
    if n_hidden:
        cells = int(per_pert.sum() - per_pert[perts].sum())
        label += f"; {n_hidden:,} more, with {cells:,} cells, are not shown"
    return label


def _add_legend(figure: Figure) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=SPLIT_COLOURS[name], label=name) for name in SPLITS]
    figure.legend(handles=handles, loc="outside lower right", ncols=len(SPLITS), title=None)
