"""One measured operation, in its own process: prints one JSON line.

``python -m benchmarks._scale_worker OPERATION STORE``
"""

from __future__ import annotations

import json
import sys

import numpy as np

from benchmarks.measure import Meter
from benchmarks.scale_operations import OPERATIONS

MODULES = ("dask.array", "pandas", "xarray", "zarr", "numba", "lazypert.loading.loader", "lazypert.run_manifest")


def main(name: str, store: str) -> None:
    """Measure an operation, from the path of the store to its answer."""
    for module in MODULES:
        __import__(module)
    operation, meter = OPERATIONS[name], Meter()
    with meter:
        answer = operation.run(store)
    n_bytes = getattr(answer, "nbytes", 0) if isinstance(answer, np.ndarray) else 0
    print(json.dumps({**meter.used, "answer_bytes": int(n_bytes)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
