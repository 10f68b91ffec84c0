"""The machine and the versions behind a report, for comparing reports."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

from lazypert._internal.memory import cpu_count

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("lazypert", "annbatch", "anndata", "zarr", "h5py", "numcodecs", "dask", "numba", "numpy", "scipy", "pandas")


def machine() -> dict[str, str | int]:
    """Processor, memory, system."""
    models = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return {
        "processor": models[0] if models else platform.machine(),
        "cpus": cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
    }


def versions(*more: str) -> dict[str, str | None]:
    """Versions of the relevant packages and of `more`, and the commit; None for packages that are not installed."""
    found: dict[str, str | None] = {}
    for name in (*PACKAGES, *more):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found | {"commit": _commit()}


def _commit() -> str | None:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None
