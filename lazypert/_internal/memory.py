"""Sizes in bytes: reading them, printing them, and dividing a budget between workers."""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lazypert.errors import ConfigError

_UNITS = {"": 1, "b": 1, "k": 1000, "kb": 1000, "m": 1000**2, "mb": 1000**2, "g": 1000**3, "gb": 1000**3}
_UNITS |= {"kib": 1024, "mib": 1024**2, "gib": 1024**3, "t": 1000**4, "tb": 1000**4, "tib": 1024**4}
_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)

MINIMUM_LIMIT = 64 * 1024**2


def parse_bytes(size: float | str) -> int:
    """Read a size such as ``"256MiB"``, ``"1.5 GB"`` or a plain number of bytes.

    Raises
    ------
    ConfigError
        When the text is no size.
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
        raise ConfigError(f"Not a size in bytes: got {size!r}, expected a number or text like '256MiB', '1GB'.")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def format_bytes(size: float) -> str:
    """Print a number of bytes for people: ``format_bytes(1536) == "1.5 KiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def peak_memory() -> int:
    """Most bytes that this process has held in memory so far."""
    status = Path("/proc/self/status")
    if status.exists():  # the system's own counter also holds the peak of the process this one was forked from
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+)", status.read_text())[0])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def give_back() -> None:
    """Return freed memory to the system: glibc keeps what threads have freed, beside what the next ones take."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def cpu_count() -> int:
    """Processors this process may use (not those of the whole machine)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much memory one long job may use, shared by the tasks that run at the same time.

    Parameters
    ----------
    limit
        Bytes for the whole job, over what the imports take.
    workers
        Tasks that run at once.
    """

    limit: int
    workers: int

    @classmethod
    def of(cls, memory_limit: int | str, workers: int | None = None) -> Budget:
        """Make a budget from a user's limit; refuse one too small to hold a single shard."""
        limit = parse_bytes(memory_limit)
        if limit < MINIMUM_LIMIT:
            raise ConfigError(
                f"memory_limit is too small: got {format_bytes(limit)}, expected at least "
                f"{format_bytes(MINIMUM_LIMIT)}, because one shard is gathered in memory before it is written."
            )
        return cls(limit=limit, workers=workers or min(cpu_count(), max(1, limit // (128 * 1024**2))))

    @property
    def per_task(self) -> int:
        """Bytes one task may hold."""
        return self.limit // self.workers
