"""Converting an atlas: time, peak memory, and how often the file is read; each conversion in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

_SCRIPT = """
import json, sys, time
import anndata, h5py
import lazypert as lp
import lazypert_converters.h5ad
from benchmarks.atlas import ROLES
from lazypert._internal import files
from lazypert._internal.memory import peak_memory

source, store, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
own = [0]


def counted(function):
    def call(*args):
        result = function(*args)
        own[0] += result if isinstance(result, int) else result[0] if result else 0
        return result
    return call


# Temporary files are read through these functions, so that what is left was read from the source.
files.read_at = counted(files.read_at)
for name in ("array_files", "spill"):
    module = __import__(f"lazypert.conversion.{name}", fromlist=["crc32_of"])
    module.crc32_of = counted(module.crc32_of)


def read():
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])


seconds, first = [], read()
before, start, cpu = peak_memory(), time.perf_counter(), time.process_time()
lp.convert(
    source, store, progress=lambda event: seconds.append(time.perf_counter() - start), overwrite=True, **ROLES | options
)
print(json.dumps({
    "seconds": time.perf_counter() - start,
    "cpu_seconds": time.process_time() - cpu,
    "first_progress_seconds": seconds[0],
    "peak_bytes": peak_memory() - before,
    "source_bytes_read": read() - first - own[0],
}))
"""


def measure_conversion(source: Path, store: Path, **options: Any) -> dict[str, float]:
    """Convert an atlas in a process of its own.

    Parameters
    ----------
    options
        Options of `lazypert.convert` besides the roles.

    Returns
    -------
    ``seconds``, ``cpu_seconds``, ``first_progress_seconds``; ``peak_bytes`` above the imports; and
    ``source_bytes_read``, with ``times_read``, its ratio to the size of the file. Linux only.
    """
    command = [sys.executable, "-c", _SCRIPT, str(source), str(store), json.dumps(options)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"converting {source} failed:\n{run.stderr}")
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found | {"times_read": found["source_bytes_read"] / source.stat().st_size}
