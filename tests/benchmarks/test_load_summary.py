"""Summaries and tables of the benchmark of loading, from runs made by hand."""

import sys

import pytest

from benchmarks import load_report, load_summary
from benchmarks.loaders import BEST, LIMIT, RIVALS
from benchmarks.loaders.base import CHUNKS, ENDPOINTS
from tests.support.load_runs import a_run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks need /proc")


class TestSummary:
    STEP = ("endpoint", "kind", "load_seconds", "step_seconds", "both_seconds", "cpu_seconds_each_core")

    def test_ratios_are_taken_within_a_round(self):
        mine = [a_run(number=n, cells_per_s=s) for n, s in enumerate([10, 30, 20])]
        theirs = [a_run("annbatch-class", number=n, cells_per_s=s) for n, s in ((2, 5), (0, 2), (1, 10))]
        assert load_summary.speed_ratio(mine, theirs) == 4  # of 5, 3 and 4
        assert load_summary.speed_ratio(mine[:1], theirs[:1]) is None

    def test_a_result_for_each_rival_endpoint_and_cache(self):
        runs = [a_run(number=n, cells_per_s=s, cells=4, rchar=8, padding_share=0.5) for n, s in enumerate([4, 2, 3])]
        runs += [a_run("annbatch-class", number=n) for n in range(3)]
        runs += [
            a_run("annbatch-class", "dense"),
            a_run(cache="cold", cells_per_s=9),
            a_run(LIMIT, CHUNKS, cells_per_s=8),
        ]
        mine, theirs, alone, cold, bound = load_summary.summarise(runs)
        assert mine["cells_per_s"] == {"min": 2, "median": 3, "max": 4}
        assert (mine["runs"], mine["rchar_per_cell"], mine["padding_share"]) == (3, 2, 0.5)
        assert mine["lazypert_is_faster_by"] == cold["lazypert_is_faster_by"] == alone["lazypert_is_faster_by"] == {}
        assert theirs["lazypert_is_faster_by"] == {"csr": 3}
        assert theirs["padding_share"] is None
        assert bound["lazypert_is_faster_by"] == {"csr": 0.5}  # a share: of the same round, warm

    def test_best_setting_is_that_of_the_median(self):
        trials = [("a", 9), ("a", 1), ("a", 2), ("b", 3), ("b", 4), ("b", 3)]
        assert load_summary.best_setting([{"setting": s, "cells_per_s": v} for s, v in trials]) == "b"
        assert load_summary.best_setting([]) is None

    def test_overlap_is_over_the_longer_of_the_two(self):
        runs = [
            dict(zip(self.STEP, ("csr", "device", *seconds), strict=True))
            for seconds in ((2, 1, 3, 3), (1, 2, 2, 1), (1, 1, 1.25, 1.25))
        ]
        (found,) = load_summary.overlaps(runs)
        assert found["ratio"] == {"min": 1, "median": 1.25, "max": 1.5}
        assert found["floor"] == 1.25
        assert found["runs"] == 3


def test_tables_have_a_row_for_every_result():
    said = {"setting": "1x1x1", "codecs": "zarr", "classes": 3, "classes_left_out": 1, "cells_left_out": 5}
    runs = [
        a_run(name, endpoint, cache, notes=said if "annbatch" in name else {"chunks_per_batch": 2.5})
        for cache in ("warm", "cold")
        for name, rival in RIVALS.items()
        for endpoint in rival.endpoints
        if cache == "warm" or rival.cold
    ]
    steps = [dict(zip(TestSummary.STEP, ("csr", "device", 1, 1, 1.5, 1.25), strict=True))]
    screen = {"cells": 1, "genes": 1, "nnz": 1, "bytes": 1, "groups": 1, "median_group": 1}
    text = load_report.markdown(
        {
            "made": "2000-01-01",
            "machine": {"processor": "P", "cpus": 2, "memory": 1024, "system": "S", "python": "3"},
            "versions": {"lazypert": "1", "annbatch": None},
            "interpreters": {"cell-load": {"python": "3.11", "versions": {"cell-load": "0.10.4", "torch": None}}},
            "options": {"sentence_size": 32, "sentences_per_batch": 8, "seconds": 6.0, "slow_seconds": 30.0},
            "screens": {"the screen": screen},
            "runs": runs,
            "results": load_summary.summarise(runs),
            "overlap": load_summary.overlaps(steps),
            "sweep": [{"setting": "1x1x1", "cells_per_s": 1}],
            "best": {BEST: "1x1x1"},
            "skipped": {"other": "not installed"},
            "failed": {},
            "disagreements": [],
        }
    )
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    tables = 2 * (len(runs) + 4) + (2 + len(ENDPOINTS)) + 3 + 3
    assert len(rows) == tables
    assert "Against the limit (2.5 chunks decoded per batch)" in text
    assert "1 of 3 classes (5 cells) left out" in text
    assert "| csr      | device |" in text
    assert "1.500 (1.500-1.500)" in text
    assert "- cell-load runs in Python 3.11 with cell-load 0.10.4" in text
    assert "- other: not installed" in text
    assert "None" not in text
