"""One measured operation, in its own process: prints one JSON line.

``python -m benchmarks._scale_worker OPERATION PATH``
"""

from __future__ import annotations

import json
import sys

import numpy as np

from benchmarks.measure import Meter
from benchmarks.scale_operations import OPERATIONS

MODULES = ("dask.array", "pandas", "xarray", "zarr", "numba", "lazypert.loading.loader", "lazypert.run_manifest")


def main(name: str, path: str) -> None:
    """Measure an operation, from the path of the store, or of the H5AD file, to its answer."""
    operation, meter = OPERATIONS[name], Meter()
    for module in (*MODULES, "anndata.experimental") if operation.reads_h5ad else MODULES:
        __import__(module)
    with meter:
        answer = operation.run(path)
    n_bytes = getattr(answer, "nbytes", 0) if isinstance(answer, np.ndarray) else 0
    print(json.dumps({**meter.used, "answer_bytes": int(n_bytes)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
