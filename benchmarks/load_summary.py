"""Reduce many loading runs to one result per rival, endpoint and page cache. Pure: dictionaries in, dictionaries out.

A run is what `_load_worker` printed, plus the keys ``rival``, ``endpoint``, ``cache`` and ``round``.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks.loaders.base import CHUNKS
from benchmarks.summary import OWN, min_median_max

Run = dict[str, Any]

WARM, COLD = "warm", "cold"
CACHES = (WARM, COLD)
SPREAD = ("cells_per_s", "first_batch_seconds", "peak_bytes", "peak_over_imports_bytes")
MEDIANS = ("import_seconds", "import_peak_bytes", "measured_seconds", "cpu_user_s", "cpu_system_s", "cells", "batches")
# Runs last for a fixed time and not a number of cells, so bytes read are comparable only per cell.
PER_CELL = ("rchar", "read_bytes")


def summarise(runs: list[Run]) -> list[Run]:
    """Return one result per rival, endpoint and cache, in the order of their first runs."""
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
                **{key: min_median_max([run[key] for run in mine]) for key in SPREAD},
                **{key: median(run[key] for run in mine) for key in MEDIANS},
                **{f"{key}_per_cell": median(run[key] / run["cells"] for run in mine) for key in PER_CELL},
                "padding_share": _median_or_none([run["padding_share"] for run in mine]),
                "notes": mine[0]["notes"],
                "lazypert_is_faster_by": {
                    own_endpoint: ratio
                    for own_endpoint in dict.fromkeys(run["endpoint"] for run in own)
                    if rival != OWN and endpoint in (own_endpoint, CHUNKS)
                    if (ratio := speed_ratio([run for run in own if run["endpoint"] == own_endpoint], mine)) is not None
                },
            }
        )
    return results


def speed_ratio(mine: list[Run], theirs: list[Run]) -> float | None:
    """Return the median over rounds of my cells per second / theirs; above 1 is faster.

    Runs of a round follow one another closely, so a slowdown of the machine cancels out.
    """
    rounds = {run["round"]: run["cells_per_s"] for run in theirs}
    ratios = [run["cells_per_s"] / rounds[run["round"]] for run in mine if run["round"] in rounds]
    return median(ratios) if ratios else None


def best_setting(trials: list[Run]) -> str | None:
    """Return the annbatch setting with the highest median of cells per second."""
    speeds: dict[str, list[float]] = {}
    for trial in trials:
        speeds.setdefault(trial["setting"], []).append(trial["cells_per_s"])
    return max(speeds, key=lambda setting: median(speeds[setting]), default=None)


def overlaps(runs: list[Run]) -> list[Run]:
    """Return, per endpoint and kind of step, how much longer both together take than the longer of the two alone.

    A ``ratio`` of 1 is perfect overlap, and 2 is none, since both take equally long alone. ``floor`` is the
    ratio if every core were busy all the time: above 1, the cores cannot do both in the time of one.
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
                "ratio": min_median_max([run["both_seconds"] / most for run, most in zip(mine, longer, strict=True)]),
                "floor": median(
                    max(1, run["cpu_seconds_each_core"] / most) for run, most in zip(mine, longer, strict=True)
                ),
                **{key: median(run[key] for run in mine) for key in ("load_seconds", "step_seconds", "both_seconds")},
            }
        )
    return results


def _key(run: Run) -> tuple[str, str, str]:
    return run["rival"], run["endpoint"], run["cache"]


def _median_or_none(values: list[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    return median(given) if given else None
