"""Byte sizes, memory budgets and processor counts."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.system
import numpy as np

from lazypert.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_UNITS = {"": 1, "b": 1, "k": 1000, "kb": 1000, "m": 1000**2, "mb": 1000**2, "g": 1000**3, "gb": 1000**3}
_UNITS |= {"kib": 1024, "mib": 1024**2, "gib": 1024**3, "t": 1000**4, "tb": 1000**4, "tib": 1024**4}
_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)
_MAX_THREADS = 8
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))

MINIMUM_LIMIT = 64 * 1024**2
"""Smallest `memory_limit`: a shard is assembled in memory before it is written."""


def parse_bytes(size: float | str, name: str = "size") -> int:
    """Parse a size such as ``"256MiB"``, ``"1.5 GB"`` or a number of bytes.

    Parameters
    ----------
    size
        Text, or a non-negative whole number.
    name
        Name of the option, for the error message.

    Raises
    ------
    ConfigError
        If `size` is not a size in bytes.
    """
    if (
        isinstance(size, int | float | np.integer)
        and not isinstance(size, bool)
        and float(size).is_integer()
        and size >= 0
    ):
        return int(size)
    match = _PATTERN.fullmatch(size) if isinstance(size, str) else None
    if match is None or match[2].lower() not in _UNITS:
        raise ConfigError(f"{name}: got {size!r}, expected a size in bytes, such as 256_000_000, '256MiB' or '1GB'.")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def format_bytes(size: float) -> str:
    """Format a number of bytes for people: ``format_bytes(1536) == "1.5 KiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def peak_memory() -> int:
    """Return the peak resident memory of this process, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # unlike getrusage, this does not include the peak of the parent process
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+)", status.read_text())[0])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def machine_memory() -> int:
    """Return how many bytes of memory this process may use: the machine's memory, or its container's limit if lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in _CGROUP_LIMITS:
        try:
            total = min(total, int(limit.read_text()))
        except (OSError, ValueError):  # there is no such file, or it says "max"
            continue
    return total


def own_pages(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Make an array of zeros whose memory goes back to the system when it is deleted.

    The allocator keeps that of arrays of some megabytes, which is much if there are hundreds at a time.
    """
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, max(1, n_bytes)), np.uint8, n_bytes).view(dtype).reshape(shape)


def release_memory() -> None:
    """Return freed memory to the operating system; glibc would keep it for each thread that freed it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def cpu_count() -> int:
    """Return the number of processors that this process may use, given its affinity and container quotas."""
    return int(dask.system.cpu_count())


def default_threads() -> int:
    """Return the default number of threads for work that alternates between reading and computing.

    One more than the number of processors, at most 8, so that a thread that waits for the disk leaves no
    processor idle. With a single processor, it is one: more threads would only compete for it.
    """
    processors = cpu_count()
    return 1 if processors == 1 else min(_MAX_THREADS, processors + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The memory that a long job may use, divided among the tasks that run at the same time.

    Parameters
    ----------
    limit
        Bytes for the job, in addition to what the imported libraries occupy.
    workers
        Tasks that run at the same time.
    """

    limit: int
    workers: int

    @classmethod
    def of(cls, memory_limit: int | str, workers: int | None = None) -> Budget:
        """Create a budget from a user's `memory_limit`.

        Raises
        ------
        ConfigError
            If the limit is not a size, or is too small for a single shard.
        """
        limit = parse_bytes(memory_limit, "memory_limit")
        if limit < MINIMUM_LIMIT:
            raise ConfigError(
                f"memory_limit: got {memory_limit!r} ({format_bytes(limit)}), expected at least "
                f"{format_bytes(MINIMUM_LIMIT)}, because each shard is assembled in memory before it is written. "
                "Raise the limit."
            )
        return cls(limit=limit, workers=workers or min(cpu_count(), max(1, limit // (128 * 1024**2))))

    @property
    def per_task(self) -> int:
        """Byte budget of one task."""
        return self.limit // self.workers
