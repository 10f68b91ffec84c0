"""Findings about labels, combinations and controls that two splits share: arithmetic on the cells of each run."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.validation import require
from lazypert.errors import ConfigError
from lazypert.screen.combinations import parts_of
from lazypert.splits.findings import N_EXAMPLES, Finding, Kind
from lazypert.splits.names import SPLITS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups

_PAIRS = tuple(combinations(range(len(SPLITS)), 2))

_SHARED: dict[str, tuple[Kind, str]] = {
    "perturbation": (
        "shared_perturbation",
        "Both splits have cells of these perturbations, so {later} does not measure generalisation to new "
        "perturbations; hold them out if that is the claim.",
    ),
    "cell_type": (
        "shared_cell_type",
        "Both splits have cells of these cell types, so {later} does not measure generalisation to new cell types; "
        "hold them out if that is the claim.",
    ),
    "batch": (
        "shared_batch",
        "Both splits have cells of these batches, so a model may profit from batch effects that it has seen; hold out "
        "whole batches if new experiments are the claim.",
    ),
    "dataset": (
        "shared_dataset",
        "Both splits have cells of these datasets, so {later} does not measure generalisation to new screens; hold "
        "out whole datasets if that is the claim.",
    ),
}


def find_shared_labels(groups: Groups, n_cells: NDArray[np.int64]) -> Iterator[Finding]:
    """Find the perturbations (controls aside), cell types, batches and datasets that two splits share.

    Parameters
    ----------
    groups
        The screen's groups.
    n_cells
        (n_splits, n_subgroups) cells of each split in each (run, batch) of ``groups.batch_counts``.
    """
    run, columns = groups.batch_counts.run, groups.roles.columns()
    for axis, (kind, explanation) in _SHARED.items():
        n_labels, has_column = len(groups.labels[axis]), columns[axis] is not None and axis != "dataset"
        if n_labels == 0 or (n_labels == 1 and not has_column):
            continue  # all labels are missing, or all cells have that of an axis without a column
        code, labels = _batches(groups) if axis == "batch" else (groups.codes[axis][run], groups.labels[axis])
        is_counted = (groups.batch_counts.batch if axis == "batch" else code) >= 0
        if axis == "perturbation":
            is_counted &= ~groups.is_control[run]
        per_label = np.zeros((len(n_cells), len(labels)), np.int64)
        for cells, of_label in zip(n_cells, per_label, strict=True):
            np.add.at(of_label, code[is_counted], cells[is_counted])
        for a, b in _PAIRS:
            shared = np.flatnonzero((per_label[a] > 0) & (per_label[b] > 0))
            if len(shared):
                yield Finding(
                    "note",
                    kind,
                    (SPLITS[a], SPLITS[b]),
                    int(per_label[[a, b]][:, shared].sum()),
                    len(shared),
                    tuple(str(labels[number]) for number in shared[:N_EXAMPLES]),
                    explanation.format(later=SPLITS[b]),
                )


def batch_codes(groups: Groups) -> NDArray[np.int64]:
    """(n_subgroups,) code of each subgroup's dataset and batch together; -1 for a missing batch label."""
    counts = groups.batch_counts
    dataset = groups.codes["dataset"][counts.run].astype(np.int64) + 1
    return np.where(counts.batch < 0, -1, dataset * max(1, len(groups.labels["batch"])) + counts.batch)


def _batches(groups: Groups) -> tuple[NDArray[np.integer], NDArray[np.str_]]:
    """(n_subgroups,) number of each subgroup's batch, and the labels of all batches.

    Batches of two datasets are different, even if they share a label.
    """
    codes, number = np.unique(batch_codes(groups), return_inverse=True)
    dataset, batch = np.divmod(codes, len(groups.labels["batch"]))
    labels = groups.labels["batch"][batch]
    if len(groups.labels["dataset"]) > 1:
        datasets = np.append(groups.labels["dataset"], "no dataset")[dataset - 1]
        labels = np.array([f"{name} of {of}" for name, of in zip(labels, datasets, strict=True)], dtype=np.str_)
    return number, labels


def find_borrowed_controls(groups: Groups, n_cells: NDArray[np.int64]) -> Iterator[Finding]:
    """Find training controls that serve cells of other splits.

    Parameters
    ----------
    n_cells
        (n_splits, n_runs) cells of each split in each run.
    """
    is_borrowed = [borrowed_controls(groups, n_cells[0], cells) for cells in n_cells]
    for a, b in _PAIRS:
        runs = is_borrowed[b] if a == 0 else is_borrowed[a] & is_borrowed[b]
        if not runs.any():
            continue
        pools = np.unique(groups.matching_ids[runs])
        labels = groups.labels["cell_type"][np.unique(groups.codes["cell_type"][runs])]
        who = f"Cells of {SPLITS[b]} have" if a == 0 else f"Cells of {SPLITS[a]} and {SPLITS[b]} have"
        yield Finding(
            "warning",
            "shared_controls",
            (SPLITS[a], SPLITS[b]),
            int(n_cells[0][runs].sum()),
            len(pools),
            tuple(map(str, labels[:N_EXAMPLES])),
            f"{who} no controls of these cell types in their own split and are matched with those of train, which the "
            "model has seen; for a claim about new controls, split the controls too.",
        )


def borrowed_controls(groups: Groups, train: NDArray[np.int64], own: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n_runs,) whether cells of a split are matched with training controls of this run.

    They are if the split has cells, but no controls, of the controls' cell type and dataset: the policy ``"split"`` of
    `lazypert.design.control_policy`.

    Parameters
    ----------
    train, own
        (n_runs,) cells of the training split, and of the other split, in each run.
    """
    keys, is_control = groups.matching_ids, groups.is_control & (groups.ids >= 0)
    lacking = np.setdiff1d(keys[own > 0], keys[is_control & (own > 0)])
    return is_control & (train > 0) & np.isin(keys, lacking)


def find_combinations(groups: Groups, n_cells: NDArray[np.int64], separator: str) -> Iterator[Finding]:
    """Find held-out perturbations that occur inside combinations, and combinations of parts that were seen.

    The order of parts does not matter, and the control is not a part: see
    `lazypert.screen.combinations.parts_of`. A perturbation is held out if no cell of the earlier split has its
    label.

    Parameters
    ----------
    groups
        The screen's groups.
    n_cells
        (n_splits, n_runs) cells of each split in each run.
    separator
        Text between the parts of a combination's label, such as ``"+"``.

    Raises
    ------
    ConfigError
        If `separator` is empty, no perturbation label contains it, or it leaves an empty part in one.
    """
    _require_text("separator", separator)
    labels = groups.labels["perturbation"]
    if not any(separator in label for label in labels):
        raise ConfigError(
            f"separator: got {separator!r}, expected text that occurs in labels of combinations, but no perturbation "
            "has it in its label. Leave it out if the screen has no combinations."
        )
    code = groups.codes["perturbation"]
    per_label = np.zeros((len(n_cells), len(labels)), np.int64)
    for cells, of_label in zip(n_cells, per_label, strict=True):
        np.add.at(of_label, code[code >= 0], cells[code >= 0])
    per_label[:, groups.is_control_code] = 0
    used = np.flatnonzero(per_label.any(axis=0)).tolist()
    parts = {number: frozenset(parts_of(str(labels[number]), separator, groups.roles)) for number in used}
    for a, b in _PAIRS:
        seen = [number for number in used if parts[number] and per_label[a, number]]
        held_out = [number for number in used if parts[number] and per_label[b, number] and not per_label[a, number]]
        yield from _held_out_inside(labels, parts, seen, held_out, per_label[a], (SPLITS[a], SPLITS[b]))
        yield from _seen_parts(labels, parts, seen, held_out, per_label[b], (SPLITS[a], SPLITS[b]))


def _require_text(name: str, value: Any) -> None:
    require(isinstance(value, str) and value != "", name, value, "text, such as '+'")


def _held_out_inside(
    labels: NDArray[np.str_],
    parts: Mapping[int, frozenset[str]],
    seen: Sequence[int],
    held_out: Sequence[int],
    n_cells: NDArray[np.int64],
    splits: tuple[str, str],
) -> Iterator[Finding]:
    """Find the held-out perturbations all of whose parts are in one label of the earlier split."""
    with_part: dict[str, set[int]] = {}
    for number in seen:
        for part in parts[number]:
            with_part.setdefault(part, set()).add(number)
    inside = {
        number: sorted(set.intersection(*(with_part.get(part, set()) for part in parts[number]))) for number in held_out
    }
    found = {number: containers for number, containers in inside.items() if containers}
    if found:
        containers = sorted({number for numbers in found.values() for number in numbers})
        yield Finding(
            "warning",
            "combination_with_held_out_perturbation",
            splits,
            int(n_cells[containers].sum()),
            len(found),
            tuple(f"{labels[number]} in {labels[found[number][0]]}" for number in sorted(found)[:N_EXAMPLES]),
            f"Perturbations of {splits[1]} that no cell of {splits[0]} has by itself occur there inside combinations, "
            f"so the model has seen them; hold out the combinations too.",
        )


def _seen_parts(
    labels: NDArray[np.str_],
    parts: Mapping[int, frozenset[str]],
    seen: Sequence[int],
    held_out: Sequence[int],
    n_cells: NDArray[np.int64],
    splits: tuple[str, str],
) -> Iterator[Finding]:
    """Find the held-out combinations with parts that occur in the earlier split."""
    known = frozenset[str]().union(*(parts[number] for number in seen))
    found = [number for number in held_out if len(parts[number]) > 1 and parts[number] & known]
    if found:
        yield Finding(
            "note",
            "combination_of_seen_parts",
            splits,
            int(n_cells[found].sum()),
            len(found),
            tuple(
                f"{labels[number]} ({len(parts[number] & known)} of {len(parts[number])} parts)"
                for number in found[:N_EXAMPLES]
            ),
            f"Combinations of {splits[1]} are new, but some of their parts occur in {splits[0]}; report results by the "
            "number of parts that were seen.",
        )
