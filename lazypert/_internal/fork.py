"""Forked processes: locks that another thread held when the process was forked are free in the child."""

from __future__ import annotations

import os
import sys
import threading
import weakref

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
    for lock in list(_locks):
        lock._at_fork_reinit()  # type: ignore[attr-defined]  # as the standard library does with its own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
