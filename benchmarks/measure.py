"""What a process has used, from the counters that Linux keeps for it, and how large a store is."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

PROC = Path("/proc/self")
IO_COUNTERS = ("rchar", "wchar", "read_bytes", "write_bytes")


def peak_bytes() -> int:
    """Peak resident memory of this process so far.

    Not ``ru_maxrss``, in which a child starts with the peak of the process that it was forked from.
    """
    found = re.search(r"VmHWM:\s+(\d+) kB", (PROC / "status").read_text())
    assert found, "the kernel reports no VmHWM"
    return 1024 * int(found[1])


def io_bytes() -> dict[str, int]:
    """Bytes this process read and wrote: through system calls (rchar, wchar), and from and to the disk."""
    counters = dict(line.split(": ") for line in (PROC / "io").read_text().splitlines())
    return {name: int(counters[name]) for name in IO_COUNTERS}


class Meter:
    """Measures what happens inside ``with``; `used` holds the result afterwards.

    Enter it when the imports are done: what they took is reported apart, as ``import_peak_bytes``.
    """

    def __init__(self) -> None:
        self.used: dict[str, float] = {}

    def __enter__(self) -> Meter:
        self.used["import_peak_bytes"] = peak_bytes()
        self._io, self._cpu, self._clock = io_bytes(), os.times(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        seconds, cpu, io, peak = time.perf_counter() - self._clock, os.times(), io_bytes(), peak_bytes()
        self.used |= {
            "seconds": seconds,
            "cpu_user_s": cpu.user + cpu.children_user - self._cpu.user - self._cpu.children_user,
            "cpu_system_s": cpu.system + cpu.children_system - self._cpu.system - self._cpu.children_system,
            "peak_bytes": peak,
            "peak_over_imports_bytes": peak - int(self.used["import_peak_bytes"]),
            **{name: io[name] - self._io[name] for name in IO_COUNTERS},
        }


def tree_files(folder: Path) -> list[Path]:
    """Every file below a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


def tree_bytes(folder: Path) -> int:
    """Apparent size of the files below a folder: what copying or uploading it would move."""
    return sum(path.stat().st_size for path in tree_files(folder))


def flush(folder: Path) -> float:
    """Force a folder's files to the disk, and return the seconds that took.

    A tool that returns before its bytes are on the disk has this left to do; one that syncs has not.
    """
    start = time.perf_counter()
    for path in tree_files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return time.perf_counter() - start


def warm(path: Path) -> None:
    """Read a file once, so that the page cache holds what fits in it."""
    with path.open("rb", buffering=0) as file:
        while file.read(8 * 1024**2):
            pass
