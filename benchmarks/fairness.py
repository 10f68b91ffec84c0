"""The fairness benchmark: null screens, cell-load beside lazypert, the same controls everywhere, and mixing."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import fairness_report, mixing
from benchmarks.fairness_settings import (
    BATCH,
    N_CONTROLS,
    RANDOM,
    ROLES,
    describe,
    loader_of,
    make_store,
    outside,
    pool_fits,
    scaled,
    settings,
)
from benchmarks.fairness_statistics import NullStatistics, measure, pairs_of
from benchmarks.loaders import RIVALS
from benchmarks.loaders.cell_load import experiment_file
from benchmarks.machine import machine, versions
from benchmarks.processes import RunFailedError, log, probe, run_worker
from benchmarks.tables import write_json
from lazypert import PerturbationPipeline, PerturbationPipelineConfig, convert
from lazypert.simulate import NullScreenConfig, null_screen

CELL_LOAD = "cell-load"
COMPARED = {"group_sizes": (200,) * 60, "n_batches": 48}
"""The screen on which lazypert and cell-load are compared."""
SENTENCE = {"sentence_size": 40, "sentences_per_batch": 4}
"""Divides the groups of that screen: cell-load repeats cells to fill short sentences."""
CONSECUTIVE = "cell-load, consecutive"
RUNS = ((CELL_LOAD, RANDOM, 8), (CELL_LOAD, RANDOM, 0), (CONSECUTIVE, RANDOM, 8), (CELL_LOAD, BATCH, 8))
"""Runs of cell-load: its mode, strategy and worker processes, of which it has 8 by default. Consecutive loading is its
fast mode: the cells of a sentence, and their controls, are neighbours in the file."""

SHUFFLE_SIZES = (4_096, 8_192, 16_384, 32_768)
N_SMALL, N_LARGE, LARGE = 2_000, 300, 9_600
"""Groups of two screens: a genome-wide one, with 100 to 1,000 cells in each, and one with `LARGE` cells in each."""
LEAST_DISTINCT = 0.8
"""Share of the distinct groups in random order that neighbouring batches of the first screen must show."""
MEETING_GROUPS = {250: 200, 1_000: 50, 9_600: 4}
"""Number of groups of each size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to measure; see ``python -m benchmarks fairness --help``."""

    rows: int | None = None
    scale: float = 1.0
    epochs: int = 8
    python: tuple[tuple[str, str], ...] = ()
    work: Path = Path("benchmarks/results")


def run(options: Options) -> dict[str, Any]:
    """Measure, write ``fairness.json``, ``.md`` and ``.png`` to the work folder, and return the report."""
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "benchmark": "fairness",
        "made": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": versions("jax"),
        "options": {"rows": options.rows, "scale": options.scale, "epochs": options.epochs},
        "interpreters": {},
        "skipped": {},
        "failed": {},
        "disagreements": [],
    }
    with tempfile.TemporaryDirectory(dir=work) as folder:
        report["rows"] = _null_rows(options, Path(folder))
        report["loaders"] = _compare(options, Path(folder), report)
        report["same_controls"] = _same_controls(Path(folder))
    report["neighbours"], report["meetings"] = _neighbours(options), _meetings(options)
    report["disagreements"] = _disagreements(report)
    write_json(report, work / "fairness.json")
    text = fairness_report.markdown(report)
    (work / "fairness.md").write_text(text)
    print(text)
    try:
        from benchmarks.fairness_chart import draw
    except ImportError as error:
        log(f"no fairness.png: {error}")
    else:
        draw(report, work / "fairness.png")
    return report


def _null_rows(options: Options, work: Path) -> list[dict[str, Any]]:
    """Measure each setting; rows with the same screen share a store."""
    found = []
    chosen = settings()[: options.rows]
    for _, group in itertools.groupby(chosen, key=lambda setting: setting.screen):
        with tempfile.TemporaryDirectory(dir=work) as folder:
            store = None
            for setting in group:
                log(f"null screen {len(found) + 1}/{len(chosen)}")
                store = store or make_store(Path(folder), setting, scale=options.scale)
                loader = loader_of(store, setting)
                statistics, fits = measure(loader).summary(), pool_fits(loader)
                found.append(
                    describe(setting) | statistics | {"fits": fits, "outside": outside(setting, statistics, fits=fits)}
                )
    return found


def _compare(options: Options, folder: Path, report: dict[str, Any]) -> list[dict[str, Any]]:
    """Measure both loaders on the same file, with the same experiment file."""
    config = NullScreenConfig(
        group_sizes=scaled(COMPARED["group_sizes"], options.scale),
        n_batches=COMPARED["n_batches"],
        n_controls=scaled([N_CONTROLS], options.scale)[0],
    )
    (screen,) = null_screen(folder / "compared.h5ad", config)
    experiment = experiment_file(folder, screen)
    found = []
    for strategy in (RANDOM, BATCH):
        log(f"lazypert, {strategy} controls")
        pipeline = PerturbationPipeline(PerturbationPipelineConfig(mapping_strategy=strategy, **ROLES))
        loader = pipeline.setup_experiment(experiment).loader("train", to="numpy", **SENTENCE)
        found.append({"loader": "lazypert", "strategy": strategy, "workers": None} | _with_z(measure(loader)))
    python = dict(options.python).get(CELL_LOAD)
    rival = RIVALS[CELL_LOAD]
    try:
        details = probe(python, rival.modules, (CELL_LOAD, "torch", "numpy")) if python else {"absent": [CELL_LOAD]}
    except RunFailedError as error:
        details = {"absent": [str(error)]}
    if details["absent"]:
        report["skipped"][CELL_LOAD] = "not installed; pass its interpreter with --python cell-load=PATH"
        return found
    package_versions = {name: version for name, version in details.items() if name not in ("absent", "python")}
    report["interpreters"][CELL_LOAD] = {"python": details["python"], "versions": package_versions}
    for name, strategy, workers in RUNS:
        log(f"{name}, {strategy} controls, {workers} workers")
        job = {
            "source": str(screen),
            "strategy": strategy,
            "workers": workers,
            "consecutive": name == CONSECUTIVE,
            "perturbations": [config.control_pert, *config.perturbations],
            "n_batches": config.n_batches,
            "n_controls": config.n_controls,
            **SENTENCE,
        }
        try:
            statistics = run_worker("benchmarks._fairness_worker", json.dumps(job), python=python)
        except RunFailedError as error:
            report["failed"][f"{name}, {strategy}, {workers} workers"] = str(error).replace(str(folder), "work")
            continue
        found.append({"loader": name, "strategy": strategy, "workers": workers} | statistics)
    return found


def _with_z(statistics: NullStatistics) -> dict[str, Any]:
    return statistics.summary() | {"z": np.round(statistics.z, 4).ravel().tolist()}


def _same_controls(folder: Path) -> list[dict[str, Any]]:
    """Compare the controls that every cell gets, for different hosts, threads and buffers."""
    store = convert(folder / "compared.h5ad", folder / "same.zarr", **ROLES, progress=False)
    found = []
    for strategy in (RANDOM, BATCH):
        result = PerturbationPipeline(PerturbationPipelineConfig(mapping_strategy=strategy, **ROLES)).setup([store])
        expected = None
        for n_hosts, threads, shuffle_size in itertools.product((1, 2), (1, 4), (1_024, 8_192)):
            log(f"same controls: {strategy}, {n_hosts} hosts, {threads} threads, shuffle_size {shuffle_size}")
            pairs: set[Any] = set()
            for host in range(n_hosts):
                more = {"host": host, "n_hosts": n_hosts, "threads": threads, "shuffle_size": shuffle_size}
                pairs |= pairs_of(result.loader("train", to="numpy", n_basal_samples=2, **SENTENCE, **more))
            expected = pairs if expected is None else expected
            found.append(
                {
                    "strategy": strategy,
                    "hosts": n_hosts,
                    "threads": threads,
                    "shuffle_size": shuffle_size,
                    "cells": len(pairs),
                    "different": len(expected - pairs),
                }
            )
    return found


def _neighbours(options: Options) -> list[dict[str, Any]]:
    n_small, n_large = scaled((N_SMALL, N_LARGE), options.scale)
    screens = (
        (f"{n_small:,} groups of 100 to 1,000 cells", mixing.group_sizes(n_small), LEAST_DISTINCT, options.epochs),
        # This one has four times as many cells.
        (f"{n_large:,} groups of {LARGE:,} cells", np.full(n_large, LARGE), None, max(1, options.epochs // 4)),
    )
    found = []
    for (name, sizes, least, n_epochs), shuffle_size in itertools.product(screens, SHUFFLE_SIZES):
        log(f"mixing: {name}, shuffle_size {shuffle_size}")
        measured = mixing.measure_neighbours(sizes, shuffle_size, n_epochs=n_epochs)
        found.append({"screen": name, "shuffle_size": shuffle_size, "least_distinct": least} | measured)
    return found


def _meetings(options: Options) -> list[dict[str, Any]]:
    found = []
    for shuffle_size in SHUFFLE_SIZES:
        log(f"meetings, shuffle_size {shuffle_size}")
        again = {
            str(size): mixing.measure_meetings(size, shuffle_size, n_groups=max(1, round(n_groups * options.scale)))
            for size, n_groups in MEETING_GROUPS.items()
        }
        found.append({"shuffle_size": shuffle_size, "again": again})
    return found


def _disagreements(report: dict[str, Any]) -> list[str]:
    """List what is not as it must be, in words; of cell-load, nothing is asked."""
    found = [
        f"row {number}: {problem}" for number, row in enumerate(report["rows"], start=1) for problem in row["outside"]
    ]
    found += [
        f"{row['different']:,} of {row['cells']:,} cells get other controls with {row['hosts']} host(s), "
        f"{row['threads']} thread(s) and shuffle_size={row['shuffle_size']} ({row['strategy']})"
        for row in report["same_controls"]
        if row["different"]
    ]
    found += [
        f"{row['screen']}, shuffle_size={row['shuffle_size']}: {mixing.NEIGHBOURS} neighbouring batches show "
        f"{row['distinct_groups']:.0%} of the groups that they show in random order, expected at least "
        f"{row['least_distinct']:.0%}"
        for row in report["neighbours"]
        if row["least_distinct"] is not None and row["distinct_groups"] < row["least_distinct"]
    ]
    return found
