"""One measured conversion, in its own process: prints one JSON line.

``python -m benchmarks._worker RIVAL SOURCE TARGET MEMORY_LIMIT``
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from benchmarks.measure import Meter, flush, tree_bytes, tree_files
from benchmarks.rivals import RIVALS, contents


def main(name: str, source: str, target: str, memory_limit: str) -> None:
    """Measure a conversion, then inspect the store, which is not measured."""
    rival, store, meter = RIVALS[name], Path(target), Meter()
    start = time.perf_counter()
    rival.load()
    import_seconds = time.perf_counter() - start
    with meter:
        rival.convert(Path(source), store, memory_limit)
    result = {
        "import_seconds": import_seconds,
        **meter.used,
        "flush_seconds": flush(store),
        "store_bytes": tree_bytes(store),
        "store_files": len(tree_files(store)),
        **contents(store),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
