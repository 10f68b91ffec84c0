"""Many runs of loaders to one line for each rival, endpoint and page cache. Pure: dictionaries in, dictionaries out.

A run is what `_load_worker` printed, with the keys ``rival``, ``endpoint``, ``cache`` and ``round``.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks.loaders.base import CHUNKS

Run = dict[str, Any]

WARM, COLD = "warm", "cold"
CACHES = (WARM, COLD)
OWN = "lazypert"
SPREAD = ("cells_per_s", "first_batch_seconds", "peak_bytes", "peak_over_imports_bytes")
MEDIANS = ("import_seconds", "import_peak_bytes", "measured_seconds", "cpu_user_s", "cpu_system_s", "cells", "batches")
# Runs take a time, not a number of cells: what they read says something only for each cell.
PER_CELL = ("rchar", "read_bytes")


def summarise(runs: list[Run]) -> list[Run]:
    """Return one result for each rival, endpoint and cache, in the order of their first runs."""
    results = []
    for rival, endpoint, cache in dict.fromkeys(map(_key, runs)):
        mine = [run for run in runs if _key(run) == (rival, endpoint, cache)]
        own = [run for run in runs if run["rival"] == OWN and run["cache"] == cache]
        results.append(
            {
                "rival": rival,
                "endpoint": endpoint,
                "cache": cache,
                "runs": len(mine),
                **{key: _spread([run[key] for run in mine]) for key in SPREAD},
                **{key: median(run[key] for run in mine) for key in MEDIANS},
                **{f"{key}_per_cell": median(run[key] / run["cells"] for run in mine) for key in PER_CELL},
                "filler_share": _median_or_none([run["filler_share"] for run in mine]),
                "notes": mine[0]["notes"],
                "lazypert_is_faster_by": {
                    reached: found
                    for reached in dict.fromkeys(run["endpoint"] for run in own)
                    if rival != OWN and endpoint in (reached, CHUNKS)
                    if (found := speed_ratio([run for run in own if run["endpoint"] == reached], mine)) is not None
                },
            }
        )
    return results


def speed_ratio(mine: list[Run], theirs: list[Run]) -> float | None:
    """Return my cells a second / theirs, run by run of the same round, then the median; above 1 is faster.

    Runs of one round stand side by side, so what slowed the machine down meanwhile cancels out.
    """
    rounds = {run["round"]: run["cells_per_s"] for run in theirs}
    found = [run["cells_per_s"] / rounds[run["round"]] for run in mine if run["round"] in rounds]
    return median(found) if found else None


def best_setting(trials: list[Run]) -> str | None:
    """Return the annbatch setting with the most cells a second, by its median."""
    speeds: dict[str, list[float]] = {}
    for trial in trials:
        speeds.setdefault(trial["setting"], []).append(trial["cells_per_s"])
    return max(speeds, key=lambda setting: median(speeds[setting]), default=None)


def overlaps(runs: list[Run]) -> list[Run]:
    """For each endpoint and kind of step, how far loading and steps together exceed the longer of the two.

    A ``ratio`` of 1 is perfect overlap; 2 is none, as both take the same time. ``floor`` is what the
    ratio would be if every core were busy from beginning to end: where it is above 1, both together
    have more work than the cores do in that time.
    """
    results = []
    for endpoint, kind in dict.fromkeys((run["endpoint"], run["kind"]) for run in runs):
        mine = [run for run in runs if (run["endpoint"], run["kind"]) == (endpoint, kind)]
        longer = [max(run["load_seconds"], run["step_seconds"]) for run in mine]
        results.append(
            {
                "endpoint": endpoint,
                "kind": kind,
                "runs": len(mine),
                "ratio": _spread([run["both_seconds"] / most for run, most in zip(mine, longer, strict=True)]),
                "floor": median(
                    max(1, run["cpu_seconds_each_core"] / most) for run, most in zip(mine, longer, strict=True)
                ),
                **{key: median(run[key] for run in mine) for key in ("load_seconds", "step_seconds", "both_seconds")},
            }
        )
    return results


def _key(run: Run) -> tuple[str, str, str]:
    return run["rival"], run["endpoint"], run["cache"]


def _spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": median(values), "max": max(values)}


def _median_or_none(values: list[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    return median(given) if given else None
