"""The rows of the table of null screens, in a covering design, and the ranges that their statistics must be in."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lazypert import PerturbationPipeline, PerturbationPipelineConfig, convert
from lazypert.simulate import NullScreenConfig, null_screen

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from lazypert.loading.loader import Loader

RANDOM, BATCH = "random", "batch"
ROLES = {
    "pert_col": "perturbation",
    "cell_type_col": "cell_type",
    "batch_col": "batch",
    "control_pert": "non-targeting",
}
N_CONTROLS = 9_600

GROUP_SIZES: dict[str, tuple[int, ...]] = {
    "100-300": (100, 200, 300) * 20,
    "300-3,000": (300,) * 40 + (1_000, 3_000) * 10,
    "300-38,000": (300,) * 57 + (3_000, 10_000, 38_000),
}
"""Cells of the perturbations of a screen."""

CROSSED: dict[str, tuple[Any, ...]] = {
    "n_batches": (1, 8, 48, 200),
    "strategy": (RANDOM, BATCH),
    "split": ("train", "valid", "test"),
}
"""Factors of which every combination is measured."""

PAIRED: dict[str, tuple[Any, ...]] = {
    "cells": tuple(GROUP_SIZES),
    "n_datasets": (1, 2, 3),
    "sentence_size": (32, 64, 512),
    "k": (1, 16),
    "memory_limit": ("256MiB", "1GiB"),
}
"""Factors of which every pair of values is measured, with one another and with those that are crossed."""

TOO_SMALL = "150KB"  # of memory, for the pool of a few thousand controls


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of the table.

    Parameters
    ----------
    n_batches, n_datasets
        Numbers of each in the screen.
    cells
        Sizes of the groups: a key of `GROUP_SIZES`.
    strategy, split
        As in the pipeline; 60 % of the cells train, and 20 % each are in the others.
    sentence_size, memory_limit
        As in the loader.
    k
        Controls per cell.
    """

    n_batches: int
    strategy: str
    split: str
    cells: str
    n_datasets: int
    sentence_size: int
    k: int
    memory_limit: str

    @property
    def screen(self) -> tuple[int, str, int]:
        """What the screen depends on."""
        return self.n_batches, self.cells, self.n_datasets


def settings() -> list[Setting]:
    """Every row of the table: the covering design, and two with a pool that does not fit, ordered by screen."""
    rows = [Setting(**values) for values in covering(CROSSED, PAIRED)]
    rest = {"split": "train", "cells": "300-3,000", "n_datasets": 1, "sentence_size": 64, "k": 1}
    rows += [Setting(n_batches=48, strategy=s, memory_limit=TOO_SMALL, **rest) for s in (RANDOM, BATCH)]
    return sorted(rows, key=lambda row: (row.screen, row.strategy != RANDOM, row.split, row.sentence_size))


def covering(crossed: dict[str, tuple[Any, ...]], paired: dict[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Combine values: every combination of the crossed factors, and every pair of values of any two factors.

    Each row takes the values of the paired factors that cover most pairs that are not covered yet, and among those
    most triples; rows are added if pairs are left.
    """
    names = [*crossed, *paired]
    seen: set[tuple[tuple[str, Any], ...]] = set()
    rows: list[dict[str, Any]] = []

    def new(row: dict[str, Any], n: int) -> set[tuple[tuple[str, Any], ...]]:
        return set(itertools.combinations([(name, row[name]) for name in names], n)) - seen

    def add(candidates: Iterable[dict[str, Any]]) -> None:
        row = max(candidates, key=lambda row: (len(new(row, 2)), len(new(row, 3))))
        seen.update(new(row, 2), new(row, 3))
        rows.append(row)

    bases = [dict(zip(crossed, values, strict=True)) for values in itertools.product(*crossed.values())]
    choices = [dict(zip(paired, values, strict=True)) for values in itertools.product(*paired.values())]
    for base in bases:
        add(base | choice for choice in choices)
    every = [base | choice for base in bases for choice in choices]
    while any(new(row, 2) for row in every):
        add(every)
    return rows


def scaled(sizes: Iterable[int], scale: float) -> tuple[int, ...]:
    """Multiply sizes, keeping at least 10 cells."""
    return tuple(max(10, round(size * scale)) for size in sizes)


def make_store(folder: Path, setting: Setting, *, scale: float = 1.0) -> Path:
    """Simulate and convert the screen of a setting."""
    config = NullScreenConfig(
        group_sizes=scaled(GROUP_SIZES[setting.cells], scale),
        n_controls=scaled([N_CONTROLS], scale)[0],
        n_batches=setting.n_batches,
    )
    files = null_screen([folder / f"screen{number}.h5ad" for number in range(setting.n_datasets)], config)
    return convert(files, folder / "screen.zarr", **ROLES, progress=False)


def loader_of(store: Path, setting: Setting) -> Loader:
    """Make the loader of a setting, which shuffles in all splits."""
    config = PerturbationPipelineConfig(
        train_frac=0.6,
        valid_frac=0.2,
        mapping_strategy=setting.strategy,  # type: ignore[arg-type]
        **ROLES,
    )
    return (
        PerturbationPipeline(config)
        .setup([store])
        .loader(
            setting.split,
            shuffle=True,
            sentence_size=setting.sentence_size,
            sentences_per_batch=4,
            n_basal_samples=setting.k,
            memory_limit=setting.memory_limit,
            to="numpy",
        )
    )


def pool_fits(loader: Loader) -> bool:
    """Whether all controls are within reach at any time."""
    return loader.state_dict()["plan"]["controls_in_reach"] is None


def outside(setting: Setting, found: dict[str, Any], *, fits: bool) -> list[str]:
    """Which statistics of a row are outside their range, in words."""
    is_random = setting.strategy == RANDOM
    bounds: list[tuple[str, float | None, float | None, float | None]] = [
        ("rms z", found["rms_z"], 0.9 if is_random else None, 1.15),  # controls of the same batch differ less
        ("correlation", found["correlation"], -0.1, 0.1),
        ("controls served", found["served"] if fits else None, 0.95, None),
        ("worth", found["worth"] if setting.k > 1 else None, 0.95 * found["most_worth"], None),
        ("batch share variance", found["share_variance"], None, 1.15),
    ]
    return [
        f"{name} is {value:.3g}, expected {_range(low, high)}"
        for name, value, low, high in bounds
        if value is not None and not (low is None or value >= low) * (high is None or value <= high)
    ]


def _range(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    return f"at least {low:g}" if high is None else f"at most {high:g}"


def describe(setting: Setting) -> dict[str, Any]:
    """The setting as JSON values."""
    return asdict(setting)
