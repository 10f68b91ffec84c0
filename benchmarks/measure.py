"""What a process has used, from the counters that Linux keeps for it, and how large a store is."""

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

    Not ``ru_maxrss``, in which a child starts with the peak of the process that it was forked from.
    """
    found = re.search(r"VmHWM:\s+(\d+) kB", (PROC / "status").read_text())
    assert found, "the kernel reports no VmHWM"
    return 1024 * int(found[1])


def io_bytes(process: Path = PROC) -> dict[str, int]:
    """Bytes a process read and wrote: through system calls (rchar, wchar), and from and to the disk."""
    counters = dict(line.split(": ") for line in (process / "io").read_text().splitlines())
    return {name: int(counters[name]) for name in IO_COUNTERS}


def workers(pid: int | None = None) -> Iterator[Path]:
    """Every living descendant of a process: where a tool reads in processes of its own."""
    parents: dict[int, list[int]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parents.setdefault(int(_stat(process)[1]), []).append(int(process.name))
    found = parents.get(os.getpid() if pid is None else pid, [])
    for child in found:  # grows as it goes
        found.extend(parents.get(child, []))
        yield Path("/proc") / str(child)


def _stat(process: Path) -> list[str]:
    """Fields of ``stat`` from the state on: what stands before it is a name, which may hold spaces."""
    return (process / "stat").read_text().rpartition(")")[2].split()


def proportional_bytes(process: Path = PROC) -> int:
    """Resident memory of a process now, pages that it shares divided among those that share them."""
    found = re.search(r"^Pss:\s+(\d+) kB", (process / "smaps_rollup").read_text(), re.MULTILINE)
    assert found, "the kernel reports no Pss"
    return 1024 * int(found[1])


def _cpu(process: Path) -> tuple[float, float]:
    fields, tick = _stat(process), os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / tick, int(fields[12]) / tick


class Meter:
    """Measures what happens inside ``with``; `used` holds the result afterwards.

    Enter it when the imports are done: what they took is reported apart, as ``import_peak_bytes``.
    Processes that the block started count too, if they live when it ends; the kernel keeps no peak
    for several processes together, so with them the peak is at least what all hold at that moment.
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
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended just now
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
    return [path] if path.is_file() else [found for found in path.rglob("*") if found.is_file()]


def tree_bytes(path: Path) -> int:
    """Apparent size of the files below a folder: what copying or uploading it would move."""
    return sum(found.stat().st_size for found in tree_files(path))


def flush(path: Path) -> float:
    """Force files to the disk, and return the seconds that took.

    A tool that returns before its bytes are on the disk has this left to do; one that syncs has not.
    """
    start = time.perf_counter()
    for found in tree_files(path):
        with found.open("rb") as file:
            os.fsync(file.fileno())
    return time.perf_counter() - start


def warm(path: Path) -> None:
    """Read files once, so that the page cache holds what fits in it."""
    for found in tree_files(path):
        with found.open("rb", buffering=0) as file:
            while file.read(8 * 1024**2):
                pass


def chill(path: Path) -> None:
    """Drop files from the page cache, so that the next read comes from the disk."""
    flush(path)  # pages that are not written yet would stay
    for found in tree_files(path):
        with found.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
