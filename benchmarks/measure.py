"""Resources used by a process, from Linux's counters, and the size of a store."""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PROC = Path("/proc/self")
IO_COUNTERS = ("rchar", "wchar", "read_bytes", "write_bytes")


def peak_bytes() -> int:
    """Peak resident memory of this process so far.

    Unlike ``ru_maxrss``, it does not start with the peak of the process that this one was forked from.
    """
    found = re.search(r"VmHWM:\s+(\d+) kB", (PROC / "status").read_text())
    assert found, "the kernel reports no VmHWM"
    return 1024 * int(found[1])


def io_bytes(process: Path = PROC) -> dict[str, int]:
    """Bytes that a process read and wrote: through system calls (rchar, wchar), and from and to disk."""
    counters = dict(line.split(": ") for line in (process / "io").read_text().splitlines())
    return {name: int(counters[name]) for name in IO_COUNTERS}


def workers(pid: int | None = None) -> Iterator[Path]:
    """Yield all living descendants of a process, for loaders that read in worker processes."""
    parents: dict[int, list[int]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parents.setdefault(int(_stat(process)[1]), []).append(int(process.name))
    descendants = parents.get(os.getpid() if pid is None else pid, [])
    for child in descendants:  # grows while iterating
        descendants.extend(parents.get(child, []))
        yield Path("/proc") / str(child)


def _stat(process: Path) -> list[str]:
    """Fields of ``stat`` from the state on; the name before it may contain spaces."""
    return (process / "stat").read_text().rpartition(")")[2].split()


def proportional_bytes(process: Path = PROC) -> int:
    """Current resident memory of a process, with shared pages divided among the processes that share them."""
    found = re.search(r"^Pss:\s+(\d+) kB", (process / "smaps_rollup").read_text(), re.MULTILINE)
    assert found, "the kernel reports no Pss"
    return 1024 * int(found[1])


def _cpu(process: Path) -> tuple[float, float]:
    fields, tick = _stat(process), os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / tick, int(fields[12]) / tick


class Meter:
    """Measures the body of a ``with`` statement; `used` holds the result afterwards.

    Enter it after the imports, whose memory is reported separately as ``import_peak_bytes``. Processes that the
    body started count too if they are alive at its end. The kernel keeps no joint peak of several processes, so
    with them the peak is a lower bound: what all of them hold at the end.
    """

    def __init__(self) -> None:
        self.used: dict[str, float] = {}

    def __enter__(self) -> Meter:
        self.used["import_peak_bytes"] = peak_bytes()
        self._io, self._cpu, self._clock = io_bytes(), os.times(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        seconds, cpu, io, peak = time.perf_counter() - self._clock, os.times(), io_bytes(), peak_bytes()
        user, system, together = 0.0, 0.0, 0
        for worker in workers():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                user, system = user + _cpu(worker)[0], system + _cpu(worker)[1]
                io = {name: io[name] + count for name, count in io_bytes(worker).items()}
                together += proportional_bytes(worker)
        if together:
            peak = max(peak, together + proportional_bytes())
        self.used |= {
            "seconds": seconds,
            "cpu_user_s": user + cpu.user + cpu.children_user - self._cpu.user - self._cpu.children_user,
            "cpu_system_s": system + cpu.system + cpu.children_system - self._cpu.system - self._cpu.children_system,
            "peak_bytes": peak,
            "peak_over_imports_bytes": peak - int(self.used["import_peak_bytes"]),
            **{name: io[name] - self._io[name] for name in IO_COUNTERS},
        }


def tree_files(path: Path) -> list[Path]:
    """Every file below a folder; the path itself if it is a file."""
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def tree_bytes(path: Path) -> int:
    """Apparent size of the files below a folder, which is what copying or uploading it transfers."""
    return sum(file.stat().st_size for file in tree_files(path))


def flush(path: Path) -> float:
    """Force files to disk and return the seconds it took.

    Needed after tools that return before their bytes are on disk.
    """
    start = time.perf_counter()
    for found in tree_files(path):
        with found.open("rb") as file:
            os.fsync(file.fileno())
    return time.perf_counter() - start


def warm(path: Path) -> None:
    """Read files once, so that the page cache holds them as far as they fit."""
    for found in tree_files(path):
        with found.open("rb", buffering=0) as file:
            while file.read(8 * 1024**2):
                pass


def chill(path: Path) -> None:
    """Drop files from the page cache, so that the next read comes from disk."""
    flush(path)  # unwritten pages would stay
    for found in tree_files(path):
        with found.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
