"""Screens and made-up runs of the benchmark of loading."""

from benchmarks import load_summary
from benchmarks.loaders import OWN

SCREEN = {"cells": 1500, "genes": 100, "nnz": 30}


def a_run(rival=OWN, endpoint="csr", cache="warm", number=0, **changes):
    """What a worker reports, with every number 1 but for the changes."""
    keys = {*load_summary.SPREAD, *load_summary.MEDIANS, *load_summary.PER_CELL}
    run = {"rival": rival, "endpoint": endpoint, "cache": cache, "round": number, "padding_share": None, "notes": {}}
    return run | dict.fromkeys(keys, 1) | changes
