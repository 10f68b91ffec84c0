"""Forked processes: locks that another thread held when the process was forked are free in the child."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from typing import Any

_locks: weakref.WeakSet[threading.Lock] = weakref.WeakSet()
_had_jax = False


def forkable_lock() -> threading.Lock:
    """Make a lock that is free in a forked child. Only for what is consistent whenever the lock is taken or not."""
    lock = threading.Lock()
    _locks.add(lock)
    return lock


def is_forked_with_jax() -> bool:
    """Whether this process was forked from one that had imported JAX, whose threads are missing here."""
    return _had_jax


def _renew_locks() -> None:
    global _had_jax
    _had_jax = _had_jax or "jax" in sys.modules
    _forget_pools_of_dask()
    for lock in list(_locks):
        lock._at_fork_reinit()  # type: ignore[attr-defined]  # as the standard library does with its own


def _forget_pools_of_dask() -> None:
    """Let Dask start threads anew: it would wait for those of the parent, which a forked child does not have."""
    threaded: Any = sys.modules.get("dask.threaded")
    if threaded is not None:
        threaded.default_pool = None
        threaded.pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
