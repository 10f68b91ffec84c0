"""One measured conversion of an atlas, in its own process: prints one JSON line.

``python -m benchmarks._scale_convert_worker SOURCE STORE ORDER MEMORY_LIMIT``
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lazypert as lp
from benchmarks.atlas import ROLES
from benchmarks.measure import Meter

if TYPE_CHECKING:
    from collections.abc import Callable

MODULES = ("anndata", "h5py", "dask.array", "numba", "zarr", "lazypert_converters.h5ad")

_READERS_OF_TEMPORARY_FILES = (
    ("lazypert._internal.files", "read_at"),
    ("lazypert.conversion.array_files", "crc32_of"),
    ("lazypert.conversion.spill", "crc32_of"),
)


def main(source: str, store: str, order: str, memory_limit: str) -> None:
    """Measure a conversion; what is not read from temporary files was read from the source."""
    for module in MODULES:
        importlib.import_module(module)
    temporary = _count_temporary_bytes()
    progress: list[float] = []
    options: dict[str, Any] = {"order": order, "memory_limit": memory_limit, "overwrite": True, **ROLES}
    meter, start = Meter(), time.perf_counter()
    with meter:
        lp.convert(source, store, progress=lambda _: progress.append(time.perf_counter() - start), **options)
    n_read = meter.used["rchar"] - temporary[0]
    found = {"first_progress_s": progress[0], "times_read": n_read / Path(source).stat().st_size}
    print(json.dumps({**meter.used, **found}))


def _count_temporary_bytes() -> list[int]:
    """Count what is read through lazypert's own functions for temporary files, in the list that is returned."""
    total = [0]

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            result = function(*args)
            total[0] += result if isinstance(result, int) else result[0] if result else 0
            return result

        return call

    for module, name in _READERS_OF_TEMPORARY_FILES:
        found = importlib.import_module(module)
        setattr(found, name, counted(getattr(found, name)))
    return total


if __name__ == "__main__":
    main(*sys.argv[1:])
