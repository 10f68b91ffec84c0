"""The conversion benchmark: every rival on every screen, round by round, each run in a process of its own."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import report as reports
from benchmarks import screens
from benchmarks.machine import machine, versions
from benchmarks.measure import warm
from benchmarks.processes import RunFailedError, run_worker
from benchmarks.rivals import RIVALS
from benchmarks.screens import Screen
from benchmarks.summary import LARGE, PLAIN, disagreements, scaling, summarise
from benchmarks.tables import write_json

GZIP = "gzip"
OWN = "lazypert"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to measure; see ``python -m benchmarks convert --help``."""

    cells: int = 100_000
    genes: int = 18_000
    nnz: float = 3_500
    factor: int = 5
    runs: int = 3
    rivals: tuple[str, ...] = tuple(RIVALS)
    screens: tuple[str, ...] = (PLAIN, GZIP)
    scaling: bool = False
    memory_limit: str = "512MiB"
    work: Path = Path("benchmarks/results")


def run(options: Options) -> dict[str, Any]:
    """Measure, and return the report; it is in the work folder as ``convert.json``, ``.md`` and ``.png`` too."""
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    rivals = list(dict.fromkeys((*options.rivals, OWN) if options.scaling else options.rivals))
    report: dict[str, Any] = {
        "benchmark": "convert",
        "made": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": versions(),
        "options": {name: value for name, value in asdict(options).items() if name != "work"},
        "skipped": {name: reason for name in rivals if (reason := RIVALS[name].missing())},
        "failed": {},
        "runs": [],
    }
    made = _screens(options, work)
    report["screens"] = {s.name: {k: getattr(s, k) for k in ("cells", "genes", "nnz", "bytes")} for s in made.values()}
    able = _warmed_up([name for name in rivals if name not in report["skipped"]], options, work, report["failed"])
    for number in range(options.runs):
        for screen, rival in _jobs(options, able, number):
            _one(rival, made[screen], number, options, work, report)
        _conclude(report)
        write_json(report, work / "convert.json")
    _publish(report, work)
    return report


def _jobs(options: Options, able: list[str], number: int) -> list[tuple[str, str]]:
    """What a round runs: the rivals of a screen side by side, so that noise hits them alike."""
    rivals = [name for name in options.rivals if name in able]
    # Another rival goes first each time: what comes after a pause has it easier.
    first = number % max(1, len(rivals))
    jobs = [(screen, rival) for screen in options.screens for rival in rivals[first:] + rivals[:first]]
    if options.scaling and OWN in able:
        jobs += [job for job in ((PLAIN, OWN), (LARGE, OWN)) if job not in jobs]
    return jobs


def _screens(options: Options, work: Path) -> dict[str, Screen]:
    """Make, or find, the screens that the options ask for."""
    _say("making the screens, or finding them")
    plain = screens.plain(work, cells=options.cells, genes=options.genes, nnz=options.nnz)
    made = {PLAIN: Screen.of(PLAIN, plain)}
    if GZIP in options.screens:
        made[GZIP] = Screen.of(GZIP, screens.compressed(plain))
    if options.scaling:
        made[LARGE] = Screen.of(LARGE, screens.repeated(plain, options.factor))
    os.sync()  # what was just made would else be written to the disk beneath the first runs
    return made


def _warmed_up(names: list[str], options: Options, work: Path, failed: dict[str, str]) -> list[str]:
    """Let each rival convert a tiny screen, unmeasured: compiled code is cached then, and what fails, fails now."""
    tiny = Screen.of("warm-up", screens.plain(work, cells=256, genes=200, nnz=40))
    for name in names:
        _say(f"warm-up  {name}")
        try:
            _measure(name, tiny, options, work)
        except RunFailedError as error:
            failed[name] = str(error)
    return [name for name in names if name not in failed]


def _one(rival: str, screen: Screen, number: int, options: Options, work: Path, report: dict[str, Any]) -> None:
    """Do one run, and note what came of it."""
    label = f"round {number + 1}/{options.runs}  {screen.name}  {rival}"
    try:
        seen = _measure(rival, screen, options, work)
    except RunFailedError as error:
        report["failed"][f"{rival} on {screen.name}, round {number + 1}"] = str(error)
        _say(f"{label}: failed: {error}")
        return
    report["runs"].append({"rival": rival, "screen": screen.name, "round": number, **seen})
    _say(f"{label}: {seen['seconds']:.2f} s")


def _measure(rival: str, screen: Screen, options: Options, work: Path) -> dict[str, Any]:
    """Convert in a fresh interpreter, from a warm page cache, to a new folder that is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=work))
    arguments = [rival, str(screen.path), str(folder / "store.zarr"), options.memory_limit]
    try:
        warm(screen.path)
        return run_worker("benchmarks._worker", *arguments)
    except RunFailedError as error:
        raise RunFailedError(str(error).replace(str(work), options.work.name)) from None
    finally:
        shutil.rmtree(folder)


def _conclude(report: dict[str, Any]) -> None:
    report["results"] = summarise(report["runs"])
    report["scaling"] = scaling(report["runs"])
    report["disagreements"] = disagreements(report["runs"], report["screens"])


def _publish(report: dict[str, Any], work: Path) -> None:
    """Write the tables and the picture, and print the tables."""
    text = reports.markdown(report)
    (work / "convert.md").write_text(text)
    print(text)
    try:
        from benchmarks.chart import draw
    except ImportError as error:
        _say(f"no convert.png: {error}")
    else:
        draw(report, work / "convert.png")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
