"""The loading benchmark: every rival and endpoint, in rounds, each run in its own process."""

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

from benchmarks import fingerprints, load_report, screens
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
from benchmarks.processes import RunFailedError, log, probe, run_worker
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
MEMORY_LIMIT = "512MiB"  # for making lazypert's store, which is not measured here
MAIN, IN_ORDER, SMALL = "the screen", "the screen in grouped order", "the smaller screen"


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
    """Measure, write ``load.json``, ``.md`` and ``.png`` to the work folder, and return the report."""
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    bench = _Bench(options, work)
    report = bench.report
    for number in range(options.runs):
        for job in bench.jobs(number):
            bench.run_job(*job, number)
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
        log(f"no load.png: {error}")
    else:
        draw(report, work / "load.png")
    return report


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """What a rival reads: the path passed to it, all files behind that path, and the name of the screen."""

    path: Path
    files: tuple[Path, ...]
    screen: str


class _Sources:
    """The screens and the stores made from them, each made on first use."""

    def __init__(self, options: Options, work: Path) -> None:
        self.options, self.work = options, work

    @cache  # noqa: B019 - there is only one instance
    def screen(self, name: str) -> Screen:
        o = self.options
        small = min(o.small_cells, o.cells)
        groups = Groups(cell_types=o.cell_types, perturbations=o.perturbations, in_order=name == IN_ORDER)
        if name == SMALL:  # keep the group sizes of the screen
            groups = replace(groups, perturbations=max(3, round(o.perturbations * small / o.cells)))
        log(f"making or finding {name}")
        cells = small if name == SMALL else o.cells
        return Screen.of(name, screens.plain(self.work, cells=cells, genes=o.genes, nnz=o.nnz, groups=groups))

    @cache  # noqa: B019
    def genes(self, name: str) -> Path:
        path = self.work / f"{self.screen(name).path.stem}-genes.npz"
        fingerprints.genes_of(self.screen(name).path).save(path)
        return path

    @cache  # noqa: B019
    def cells(self, name: str) -> fingerprints.Cells:
        path = self.screen(name).path
        return fingerprints.Cells.of(path, fingerprints.genes_of(path))

    def source(self, reads: str, form: str) -> _Source:
        if reads in (FILE, GZIP_FILE, GROUPED_FILE, SMALL_FILE):
            name = {FILE: MAIN, GZIP_FILE: MAIN, GROUPED_FILE: IN_ORDER, SMALL_FILE: SMALL}[reads]
            path = self.screen(name).path
            if reads == GZIP_FILE:
                path = screens.compressed(path)
                return _Source(path=path, files=(path,), screen=name)
            if form == "hvg" and reads != SMALL_FILE:
                with_hvg = screens.with_hvg(path)
                return _Source(path=with_hvg, files=(with_hvg, path), screen=name)
            return _Source(path=path, files=(path,), screen=name)
        path = self._store(reads)
        return _Source(path=path, files=(path,), screen=MAIN)

    @cache  # noqa: B019
    def _store(self, reads: str) -> Path:
        stem = self.screen(MAIN).path.stem
        if reads == STORE:  # always remade: its format may have changed, and it takes only seconds
            path, rival = self.work / f"{stem}-lazypert.zarr", "lazypert"
            shutil.rmtree(path, ignore_errors=True)
        else:
            rival = {GROUPED: "annbatch-grouped", SHUFFLED: "annbatch-shuffled"}[reads]
            path = self.work / f"{stem}-{rival}-{importlib.metadata.version('annbatch')}.zarr"
        if not path.exists():
            log(f"making {reads}")
            partial = path.with_suffix(".partial.zarr")
            shutil.rmtree(partial, ignore_errors=True)
            run_worker("benchmarks._worker", rival, str(self.screen(MAIN).path), str(partial), MEMORY_LIMIT)
            partial.rename(path)
        return path

    def describe(self, name: str) -> dict[str, float]:
        """Sizes of a screen, for the report."""
        screen, sizes = self.screen(name), np.bincount(self.cells(name).group)
        sizes = sizes[sizes > 0]
        counted = {key: getattr(screen, key) for key in ("cells", "genes", "nnz", "bytes")}
        return counted | {"groups": len(sizes), "median_group": float(np.median(sizes))}


class _Bench:
    """A run of the benchmark: its options, sources and report."""

    def __init__(self, options: Options, work: Path) -> None:
        self.options, self.work, self.sources = options, work, _Sources(options, work)
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
        self.report["screens"] = {MAIN: self.sources.describe(MAIN)}
        self._warm_up()
        if {BEST, WIDE} & set(self.able):
            self._sweep()
        used = {self.sources.source(RIVALS[name].reads, CSR).screen for name in self.able}
        self.report["screens"] |= {name: self.sources.describe(name) for name in (IN_ORDER, SMALL) if name in used}
        os.sync()  # otherwise new files would be written to the disk during the first runs

    def jobs(self, number: int) -> list[tuple[str, str, str]]:
        """Return (rival, endpoint, cache) of each run of a round: rivals in succession, so noise affects all."""
        # Rotate the order: the first run after a pause has an advantage.
        first = number % max(1, len(self.able))
        rivals = self.able[first:] + self.able[:first]
        return [
            (name, endpoint, cache)
            for cache in self.options.caches
            for endpoint in (CHUNKS, *self.options.endpoints)
            for name in rivals
            if endpoint in RIVALS[name].endpoints
            and (cache != COLD or RIVALS[name].cold)
            and (number == 0 or not RIVALS[name].slow)
        ]

    def run_job(self, rival: str, endpoint: str, cache: str, number: int) -> None:
        """Do one run and record its result or failure."""
        label = f"round {number + 1}/{self.options.runs}  {cache}  {endpoint}  {rival}"
        seconds = self.options.slow_seconds if RIVALS[rival].slow else self.options.seconds
        try:
            result = self._measure(rival, endpoint, cache, seconds)
        except RunFailedError as error:
            self.report["failed"][f"{rival} to {endpoint} ({cache}), round {number + 1}"] = str(error)
            log(f"{label}: failed: {error}")
            return
        for problem in self._problems(rival, endpoint, result):
            self.report["disagreements"].append(f"{rival} to {endpoint} ({cache}): {problem}")
        self.report["runs"].append({"rival": rival, "endpoint": endpoint, "cache": cache, "round": number, **result})
        log(f"{label}: {result['cells_per_s']:,.0f} cells/s")

    def overlap(self, number: int) -> None:
        """Measure how well lazypert's loading overlaps with the steps of a model."""
        if OWN not in self.able:
            return
        for endpoint in self.options.endpoints:
            if endpoint.endswith(WITH_CONTROLS):
                continue
            for kind in STEPS:
                try:
                    result = self._measure(OWN, endpoint, WARM, self.options.seconds, step=kind)
                except RunFailedError as error:
                    self.report["failed"][f"overlap of {endpoint} with {kind}, round {number + 1}"] = str(error)
                    continue
                self.report["overlap_runs"].append({"endpoint": endpoint, "kind": kind, "round": number, **result})
                log(f"round {number + 1}/{self.options.runs}  overlap  {endpoint}  {kind}")

    def _is_able(self, name: str) -> bool:
        rival = RIVALS[name]
        python = self.pythons.get(rival.package, sys.executable)
        if rival.slow and rival.package not in self.pythons:
            self.report["skipped"][name] = (
                f"needs an interpreter in which it is installed: --python {rival.package}=PATH"
            )
            return False
        packages = ("torch", "jax") if rival.slow else ()
        try:
            installed = probe(
                python, tuple(module.split(".")[0] for module in rival.modules), (rival.package, *packages)
            )
        except RunFailedError as error:
            self.report["skipped"][name] = str(error)
            return False
        if installed["absent"]:
            self.report["skipped"][name] = f"{', '.join(dict.fromkeys(installed['absent']))} is not installed"
            return False
        if rival.package in self.pythons:
            del installed["absent"]
            self.report["interpreters"][name] = {"python": installed.pop("python"), "versions": installed}
        return True

    def _warm_up(self) -> None:
        """Let each rival load a few batches, to cache compiled code and to find those that fail."""
        for name in list(self.able):
            rival = RIVALS[name]
            supported = [e for e in (CHUNKS, *self.options.endpoints) if e in rival.endpoints]
            if not supported:
                self.report["skipped"][name] = "supports none of the endpoints"
                self.able.remove(name)
            for endpoint in supported[:1] if rival.slow else supported:
                log(f"warm-up  {endpoint}  {name}")
                try:
                    self._measure(name, endpoint, WARM, 0)
                except RunFailedError as error:
                    self.report["failed"][name] = str(error)
                    self.able.remove(name)
                    break

    def _sweep(self) -> None:
        """Try annbatch's settings and keep those with the most cells per second."""
        trials: list[dict[str, Any]] = []
        for number in range(SWEEP_ROUNDS):
            for setting in self.options.sweep:
                log(f"sweep {number + 1}/{SWEEP_ROUNDS}  {setting}")
                try:
                    result = self._measure(BEST, CSR, WARM, self.options.sweep_seconds, setting=setting)
                except RunFailedError as error:
                    self.report["failed"][f"{setting} of the sweep"] = str(error)
                    continue
                trials.append({"setting": setting, "cells_per_s": result["cells_per_s"]})
        self.report["sweep"] = trials
        for name in {BEST, WIDE} & set(self.able):
            # Longer chunks read faster, but exclude groups that are shorter: most groups of this screen.
            candidates = [t for t in trials if (name == WIDE) == self._is_wide(t["setting"])]
            best = best_setting(candidates)
            if best is None:
                self.report["skipped"][name] = "the sweep has no suitable setting"
                self.able.remove(name)
            else:
                self.report["best"][name] = best

    def _is_wide(self, setting: str) -> bool:
        return Setting.parse(setting).chunk_size > self.options.sentence_size

    def _measure(
        self, rival: str, endpoint: str, cache: str, seconds: float, *, setting: str = "", step: str = ""
    ) -> dict[str, Any]:
        """Load in a fresh interpreter, with a warm or cold page cache."""
        known = RIVALS[rival]
        form = endpoint.removesuffix(WITH_CONTROLS)
        source = self.sources.source(known.reads, form)
        job = Job(
            rival=rival,
            endpoint=endpoint,
            source=str(source.path),
            genes=str(self.sources.genes(source.screen)),
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

    def _problems(self, rival: str, endpoint: str, result: dict[str, Any]) -> list[str]:
        rows = {key: result.pop(key) for key in ("rows", "control_rows")}
        if rival == LIMIT:
            return []
        form = endpoint.removesuffix(WITH_CONTROLS)
        known = RIVALS[rival]
        return fingerprints.problems(
            rows,
            self.sources.cells(self.sources.source(known.reads, form).screen),
            form=form,
            controls=endpoint.endswith(WITH_CONTROLS),
            sentence_size=self.options.sentence_size if known.coherent else None,
        )
