"""Reduce many conversion runs to one result per rival and screen. Pure: dictionaries in, dictionaries out.

A run is what `_worker` printed, plus the keys ``rival``, ``screen`` and ``round``.
"""

from __future__ import annotations

from statistics import median
from typing import Any

Run = dict[str, Any]

OWN = "lazypert"
BASELINES = ("annbatch-shuffled", "annbatch-grouped")
COMPARED = ("seconds", "peak_bytes", "peak_over_imports_bytes", "store_bytes")
# Reported as minimum, median and maximum, because noise can only increase them; all others as medians.
SPREAD = ("seconds", "peak_bytes", "peak_over_imports_bytes")
MEDIANS = (
    "import_seconds",
    "import_peak_bytes",
    "cpu_user_s",
    "cpu_system_s",
    "flush_seconds",
    "rchar",
    "wchar",
    "read_bytes",
    "write_bytes",
    "store_bytes",
    "store_files",
)
PLAIN, LARGE = "uncompressed", "larger"


def summarise(runs: list[Run]) -> list[dict[str, Any]]:
    """Return one result per rival and screen, in the order of their first runs."""
    results = []
    for rival, screen in dict.fromkeys((run["rival"], run["screen"]) for run in runs):
        mine = _of(runs, rival, screen)
        seconds = median(run["seconds"] for run in mine)
        results.append(
            {
                "rival": rival,
                "screen": screen,
                "runs": len(mine),
                **{key: min_median_max([run[key] for run in mine]) for key in SPREAD},
                **{key: median(run[key] for run in mine) for key in MEDIANS},
                "cells": mine[0]["cells"],
                "nnz": mine[0]["nnz"],
                "cells_per_s": mine[0]["cells"] / seconds,
                "nnz_per_s": mine[0]["nnz"] / seconds,
                "ratios": {base: ratios(mine, _of(runs, base, screen)) for base in BASELINES if base != rival},
            }
        )
    for result in results:
        result["ratios"] = {base: found for base, found in result["ratios"].items() if found}
    return results


def ratios(mine: list[Run], theirs: list[Run]) -> dict[str, float]:
    """Return the medians over rounds of mine / theirs; below 1 means less than theirs.

    Runs of a round follow one another closely, so a slowdown of the machine cancels out.
    """
    rounds = {run["round"]: run for run in theirs}
    pairs = [(run, rounds[run["round"]]) for run in mine if run["round"] in rounds]
    return {
        key: median(found)
        for key in COMPARED
        if (found := [own[key] / other[key] for own, other in pairs if other[key] > 0])
    }


def scaling(runs: list[Run], rival: str = OWN) -> dict[str, float] | None:
    """Return how a rival's time and memory grow from the plain screen to the larger one.

    ``time_over_linear`` is 1 if the time is proportional to the number of cells, and the peak ratios are 1 if
    memory does not depend on it.
    """
    small, large = _of(runs, rival, PLAIN), _of(runs, rival, LARGE)
    found = ratios(large, small)
    if not found:
        return None
    cells = large[0]["cells"] / small[0]["cells"]
    return {
        "cells_ratio": cells,
        "time_ratio": found["seconds"],
        "time_over_linear": found["seconds"] / cells,
        "peak_ratio": found["peak_bytes"],
        "peak_over_imports_ratio": found.get("peak_over_imports_bytes", float("nan")),
        "store_ratio": found["store_bytes"],
    }


def disagreements(runs: list[Run], screens: dict[str, dict[str, Any]]) -> list[str]:
    """Describe stores whose cells or nonzeros differ from the screen's, or whose values differ from another rival's."""
    found: dict[str, None] = {}
    for run in runs:
        first = next(other for other in runs if other["screen"] == run["screen"])
        for key, expected, origin in (
            ("cells", screens[run["screen"]]["cells"], "the file"),
            ("nnz", screens[run["screen"]]["nnz"], "the file"),
            ("sum", first["sum"], first["rival"]),
        ):
            if run[key] != expected:
                subject = f"{run['rival']} on {run['screen']}"
                found[f"{subject}: {key}: got {run[key]:,}, expected {expected:,} as in {origin}"] = None
    return list(found)


def _of(runs: list[Run], rival: str, screen: str) -> list[Run]:
    return [run for run in runs if (run["rival"], run["screen"]) == (rival, screen)]


def min_median_max(values: list[float]) -> dict[str, float]:
    """Summarise values."""
    return {"min": min(values), "median": median(values), "max": max(values)}
