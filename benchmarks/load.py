"""The loading benchmark: every rival to every endpoint that it reaches, round by round, each run in a process."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import deliveries, load_report, screens
from benchmarks.load_summary import CACHES, COLD, WARM, best_setting, overlaps, summarise
from benchmarks.loaders import (
    BEST,
    FILE,
    GROUPED,
    GROUPED_FILE,
    GZIP_FILE,
    LIMIT,
    OWN,
    RIVALS,
    SHUFFLED,
    SMALL_FILE,
    STORE,
    WIDE,
)  # fmt: skip
from benchmarks.loaders.annbatch import Setting
from benchmarks.loaders.base import CHUNKS, CSR, ENDPOINTS, WITH_CONTROLS, Job
from benchmarks.loaders.lazypert import STEPS
from benchmarks.machine import machine, versions
from benchmarks.measure import chill, warm
from benchmarks.processes import RunFailedError, probe, run_worker
from benchmarks.screens import Groups, Screen
from benchmarks.tables import write_json

CLASS_SETTING = "32x128x32"
SETTINGS = {"annbatch-class": CLASS_SETTING, "annbatch-random": "256x64x256"}
SWEEP = (
    CLASS_SETTING,
    "32x512x32",
    "32x64x32",
    "32x32x32",
    "32x16x32",
    "16x64x32",
    "8x512x32",
    "64x64x32",
    "64x32x32",
    f"{CLASS_SETTING}@zarr",
)
SWEEP_ROUNDS = 2
MEMORY_LIMIT = "512MiB"  # of converting lazypert's store, which is not measured here
MAIN, IN_ORDER, SMALL = "the screen", "in grouped order", "smaller"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to measure; see ``python -m benchmarks load --help``."""

    cells: int = 100_000
    genes: int = 18_000
    nnz: float = 3_500
    cell_types: int = 4
    perturbations: int = 400
    small_cells: int = 10_000
    sentence_size: int = 32
    sentences_per_batch: int = 16
    runs: int = 3
    seconds: float = 6
    slow_seconds: float = 30
    sweep_seconds: float = 2
    rivals: tuple[str, ...] = tuple(RIVALS)
    endpoints: tuple[str, ...] = ENDPOINTS
    caches: tuple[str, ...] = CACHES
    sweep: tuple[str, ...] = SWEEP
    overlap: bool = True
    threads: int | None = None
    python: tuple[tuple[str, str], ...] = ()
    work: Path = Path("benchmarks/results")


def run(options: Options) -> dict[str, Any]:
    """Measure, and return the report; it is in the work folder as ``load.json``, ``.md`` and ``.png`` too."""
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    bench = _Bench(options, work)
    report = bench.report
    for number in range(options.runs):
        for job in bench.jobs(number):
            bench.one(*job, number)
        if options.overlap:
            bench.overlap(number)
        report["results"], report["overlap"] = summarise(report["runs"]), overlaps(report["overlap_runs"])
        write_json(report, work / "load.json")
    text = load_report.markdown(report)
    (work / "load.md").write_text(text)
    print(text)
    try:
        from benchmarks.load_chart import draw
    except ImportError as error:
        _say(f"no load.png: {error}")
    else:
        draw(report, work / "load.png")
    return report


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """What a rival reads: the path that it is given, all files behind it, and the screen that they hold."""

    path: Path
    files: tuple[Path, ...]
    screen: str


class _Shelf:
    """The screens and the stores made of them: each made when it is first asked for."""

    def __init__(self, options: Options, work: Path) -> None:
        self.options, self.work = options, work

    @cache  # noqa: B019 - there is one shelf
    def screen(self, name: str) -> Screen:
        o = self.options
        small = min(o.small_cells, o.cells)
        groups = Groups(cell_types=o.cell_types, perturbations=o.perturbations, in_order=name == IN_ORDER)
        if name == SMALL:  # groups as large as those of the screen
            groups = replace(groups, perturbations=max(3, round(o.perturbations * small / o.cells)))
        _say(f"making {name}, or finding it" if name == MAIN else f"making a screen {name}, or finding it")
        cells = small if name == SMALL else o.cells
        return Screen.of(name, screens.plain(self.work, cells=cells, genes=o.genes, nnz=o.nnz, groups=groups))

    @cache  # noqa: B019
    def genes(self, name: str) -> Path:
        path = self.work / f"{self.screen(name).path.stem}-genes.npz"
        deliveries.genes_of(self.screen(name).path).save(path)
        return path

    @cache  # noqa: B019
    def cells(self, name: str) -> deliveries.Cells:
        path = self.screen(name).path
        return deliveries.Cells.of(path, deliveries.genes_of(path))

    def source(self, reads: str, form: str) -> _Source:
        if reads in (FILE, GZIP_FILE, GROUPED_FILE, SMALL_FILE):
            name = {FILE: MAIN, GZIP_FILE: MAIN, GROUPED_FILE: IN_ORDER, SMALL_FILE: SMALL}[reads]
            path = self.screen(name).path
            if reads == GZIP_FILE:
                path = screens.compressed(path)
                return _Source(path=path, files=(path,), screen=name)
            if form == "hvg" and reads != SMALL_FILE:
                shown = screens.with_hvg(path)
                return _Source(path=shown, files=(shown, path), screen=name)
            return _Source(path=path, files=(path,), screen=name)
        path = self._store(reads)
        return _Source(path=path, files=(path,), screen=MAIN)

    @cache  # noqa: B019
    def _store(self, reads: str) -> Path:
        stem = self.screen(MAIN).path.stem
        if reads == STORE:  # made anew: its format may have changed since, and it takes seconds
            path, rival = self.work / f"{stem}-lazypert.zarr", "lazypert"
            shutil.rmtree(path, ignore_errors=True)
        else:
            rival = {GROUPED: "annbatch-grouped", SHUFFLED: "annbatch-shuffled"}[reads]
            path = self.work / f"{stem}-{rival}-{importlib.metadata.version('annbatch')}.zarr"
        if not path.exists():
            _say(f"making {reads}")
            partial = path.with_suffix(".partial.zarr")
            shutil.rmtree(partial, ignore_errors=True)
            run_worker("benchmarks._worker", rival, str(self.screen(MAIN).path), str(partial), MEMORY_LIMIT)
            partial.rename(path)
        return path

    def facts(self, name: str) -> dict[str, float]:
        """What the report says of a screen."""
        screen, sizes = self.screen(name), np.bincount(self.cells(name).group)
        sizes = sizes[sizes > 0]
        counted = {key: getattr(screen, key) for key in ("cells", "genes", "nnz", "bytes")}
        return counted | {"groups": len(sizes), "median_group": float(np.median(sizes))}


class _Bench:
    """What a benchmark has at hand, and its report."""

    def __init__(self, options: Options, work: Path) -> None:
        self.options, self.work, self.shelf = options, work, _Shelf(options, work)
        self.pythons = dict(options.python)
        self.report: dict[str, Any] = {
            "benchmark": "load",
            "made": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"),
            "machine": machine(),
            "versions": versions("jax", "zarrs"),
            "options": {name: value for name, value in asdict(options).items() if name not in ("work", "python")},
            "interpreters": {},
            "skipped": {},
            "failed": {},
            "disagreements": [],
            "sweep": [],
            "best": {},
            "runs": [],
            "overlap_runs": [],
            "results": [],
            "overlap": [],
        }
        self.able = [name for name in options.rivals if self._is_able(name)]
        self.report["screens"] = {MAIN: self.shelf.facts(MAIN)}
        self._warm_up()
        if {BEST, WIDE} & set(self.able):
            self._sweep()
        used = {self.shelf.source(RIVALS[name].reads, CSR).screen for name in self.able}
        self.report["screens"] |= {name: self.shelf.facts(name) for name in (IN_ORDER, SMALL) if name in used}
        os.sync()  # what was just made would else be written to the disk beneath the first runs

    def jobs(self, number: int) -> list[tuple[str, str, str]]:
        """What a round runs, as rival, endpoint and cache: rivals side by side, so that noise hits them alike."""
        # Another rival goes first each time: what comes after a pause has it easier.
        first = number % max(1, len(self.able))
        order = self.able[first:] + self.able[:first]
        return [
            (name, endpoint, cache)
            for cache in self.options.caches
            for endpoint in (CHUNKS, *self.options.endpoints)
            for name in order
            if endpoint in RIVALS[name].endpoints
            and (cache != COLD or RIVALS[name].cold)
            and (number == 0 or not RIVALS[name].slow)
        ]

    def one(self, rival: str, endpoint: str, cache: str, number: int) -> None:
        """Do one run, and note what came of it."""
        label = f"round {number + 1}/{self.options.runs}  {cache}  {endpoint}  {rival}"
        seconds = self.options.slow_seconds if RIVALS[rival].slow else self.options.seconds
        try:
            seen = self._measure(rival, endpoint, cache, seconds)
        except RunFailedError as error:
            self.report["failed"][f"{rival} to {endpoint} ({cache}), round {number + 1}"] = str(error)
            _say(f"{label}: failed: {error}")
            return
        for complaint in self._complaints(rival, endpoint, seen):
            self.report["disagreements"].append(f"{rival} to {endpoint} ({cache}): {complaint}")
        self.report["runs"].append({"rival": rival, "endpoint": endpoint, "cache": cache, "round": number, **seen})
        _say(f"{label}: {seen['cells_per_s']:,.0f} cells/s")

    def overlap(self, number: int) -> None:
        """Measure how lazypert's loading hides behind a step, and it behind the loading."""
        if OWN not in self.able:
            return
        for endpoint in self.options.endpoints:
            if endpoint.endswith(WITH_CONTROLS):
                continue
            for kind in STEPS:
                try:
                    seen = self._measure(OWN, endpoint, WARM, self.options.seconds, step=kind)
                except RunFailedError as error:
                    self.report["failed"][f"overlap of {endpoint} with {kind}, round {number + 1}"] = str(error)
                    continue
                self.report["overlap_runs"].append({"endpoint": endpoint, "kind": kind, "round": number, **seen})
                _say(f"round {number + 1}/{self.options.runs}  overlap  {endpoint}  {kind}")

    def _is_able(self, name: str) -> bool:
        rival = RIVALS[name]
        python = self.pythons.get(rival.package, sys.executable)
        if rival.slow and rival.package not in self.pythons:
            self.report["skipped"][name] = f"needs an interpreter that has it: --python {rival.package}=PATH"
            return False
        packages = ("torch", "jax") if rival.slow else ()
        try:
            found = probe(python, tuple(module.split(".")[0] for module in rival.modules), (rival.package, *packages))
        except RunFailedError as error:
            self.report["skipped"][name] = str(error)
            return False
        if found["absent"]:
            self.report["skipped"][name] = f"{', '.join(dict.fromkeys(found['absent']))} is not installed"
            return False
        if rival.package in self.pythons:
            del found["absent"]
            self.report["interpreters"][name] = {"python": found.pop("python"), "versions": found}
        return True

    def _warm_up(self) -> None:
        """Let each rival load a few batches, unmeasured: compiled code is cached then, and what fails, fails now."""
        for name in list(self.able):
            rival = RIVALS[name]
            reached = [e for e in (CHUNKS, *self.options.endpoints) if e in rival.endpoints]
            if not reached:
                self.report["skipped"][name] = "reaches none of the endpoints"
                self.able.remove(name)
            for endpoint in reached[:1] if rival.slow else reached:
                _say(f"warm-up  {endpoint}  {name}")
                try:
                    self._measure(name, endpoint, WARM, 0)
                except RunFailedError as error:
                    self.report["failed"][name] = str(error)
                    self.able.remove(name)
                    break

    def _sweep(self) -> None:
        """Try annbatch's settings, and keep those with the most cells a second."""
        trials: list[dict[str, Any]] = []
        for number in range(SWEEP_ROUNDS):
            for setting in self.options.sweep:
                _say(f"sweep {number + 1}/{SWEEP_ROUNDS}  {setting}")
                try:
                    seen = self._measure(BEST, CSR, WARM, self.options.sweep_seconds, setting=setting)
                except RunFailedError as error:
                    self.report["failed"][f"{setting} of the sweep"] = str(error)
                    continue
                trials.append({"setting": setting, "cells_per_s": seen["cells_per_s"]})
        self.report["sweep"] = trials
        for name in {BEST, WIDE} & set(self.able):
            # Longer chunks read faster, and leave out the classes that have none: most of this screen's.
            some = [t for t in trials if (name == WIDE) == self._is_wide(t["setting"])]
            best = best_setting(some)
            if best is None:
                self.report["skipped"][name] = "the sweep has no setting for it"
                self.able.remove(name)
            else:
                self.report["best"][name] = best

    def _is_wide(self, setting: str) -> bool:
        return Setting.parse(setting).chunk_size > self.options.sentence_size

    def _measure(
        self, rival: str, endpoint: str, cache: str, seconds: float, *, setting: str = "", step: str = ""
    ) -> dict[str, Any]:
        """Load in a fresh interpreter, from files that are in the page cache or are not."""
        known = RIVALS[rival]
        form = endpoint.removesuffix(WITH_CONTROLS)
        source = self.shelf.source(known.reads, form)
        job = Job(
            rival=rival,
            endpoint=endpoint,
            source=str(source.path),
            genes=str(self.shelf.genes(source.screen)),
            sentence_size=self.options.sentence_size,
            sentences_per_batch=self.options.sentences_per_batch,
            seconds=seconds,
            once=cache == COLD,
            threads=self.options.threads,
            setting=setting or SETTINGS.get(rival) or self.report["best"].get(rival) or CLASS_SETTING,
        )
        for path in source.files:
            (chill if cache == COLD else warm)(path)
        arguments = [json.dumps(asdict(job)), *([step] if step else [])]
        try:
            return run_worker(
                "benchmarks._load_worker", *arguments, python=self.pythons.get(known.package, sys.executable)
            )
        except RunFailedError as error:
            raise RunFailedError(str(error).replace(str(self.work), self.options.work.name)) from None

    def _complaints(self, rival: str, endpoint: str, seen: dict[str, Any]) -> list[str]:
        rows = {key: seen.pop(key) for key in ("rows", "control_rows")}
        if rival == LIMIT:
            return []
        form = endpoint.removesuffix(WITH_CONTROLS)
        known = RIVALS[rival]
        return deliveries.complaints(
            rows,
            self.shelf.cells(self.shelf.source(known.reads, form).screen),
            form=form,
            controls=endpoint.endswith(WITH_CONTROLS),
            sentence_size=self.options.sentence_size if known.coherent else None,
        )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
