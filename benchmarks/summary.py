"""Many runs to one line for each rival and screen. Pure: dictionaries in, dictionaries out.

A run is what `_worker` printed, with the keys ``rival``, ``screen`` and ``round``.
"""

from __future__ import annotations

from statistics import median
from typing import Any

Run = dict[str, Any]

BASELINES = ("annbatch-shuffled", "annbatch-grouped")
COMPARED = ("seconds", "peak_bytes", "peak_over_imports_bytes", "store_bytes")
# What noise can only add to, and so the reader may want to see; the rest is reported by its median.
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
    """Return one result for each rival and screen, in the order of their first runs."""
    results = []
    for rival, screen in dict.fromkeys((run["rival"], run["screen"]) for run in runs):
        mine = _of(runs, rival, screen)
        seconds = median(run["seconds"] for run in mine)
        results.append(
            {
                "rival": rival,
                "screen": screen,
                "runs": len(mine),
                **{key: _spread([run[key] for run in mine]) for key in SPREAD},
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
    """Return mine / theirs, run by run of the same round, then the median; below 1 is less than they need.

    Runs of one round stand side by side, so what slowed the machine down meanwhile cancels out.
    """
    rounds = {run["round"]: run for run in theirs}
    pairs = [(run, rounds[run["round"]]) for run in mine if run["round"] in rounds]
    return {
        key: median(found)
        for key in COMPARED
        if (found := [own[key] / other[key] for own, other in pairs if other[key] > 0])
    }


def scaling(runs: list[Run], rival: str = "lazypert") -> dict[str, float] | None:
    """How a rival's time and memory grow from the plain screen to the larger one, by rounds.

    ``time_over_linear`` is 1 where ``cells_ratio`` times the cells take as many times the seconds; the
    peak ratios are 1 where memory doesn't depend on the number of cells.
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
    """Stores that do not hold their screen's cells and nonzeros, or other values than a rival's."""
    found: dict[str, None] = {}
    for run in runs:
        first = next(other for other in runs if other["screen"] == run["screen"])
        for key, expected, whose in (
            ("cells", screens[run["screen"]]["cells"], "the file"),
            ("nnz", screens[run["screen"]]["nnz"], "the file"),
            ("sum", first["sum"], first["rival"]),
        ):
            if run[key] != expected:
                who = f"{run['rival']} on {run['screen']}"
                found[f"{who}: {key}: got {run[key]:,}, expected {expected:,} as in {whose}"] = None
    return list(found)


def _of(runs: list[Run], rival: str, screen: str) -> list[Run]:
    return [run for run in runs if (run["rival"], run["screen"]) == (rival, screen)]


def _spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": median(values), "max": max(values)}
