"""Saved state of an iteration: a small, versioned dictionary that can be saved as JSON."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

from lazypert._internal.validation import require, require_integer
from lazypert.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lazypert.design.sentence_plan import SentencePlan

STATE_VERSION = 3


@dataclass(slots=True)
class Position:
    """Epoch, and the next step in it."""

    epoch: int
    step: int


def digest(*values: Any) -> str:
    """Short hexadecimal digest of arrays and of anything else that has an unambiguous repr."""
    sha = hashlib.sha256()
    for value in values:
        sha.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
        sha.update(b"\0")
    return sha.hexdigest()[:16]


def plan_fingerprint(plan: SentencePlan, **others: str | int | bool | list[str] | None) -> dict[str, Any]:
    """Everything that must be equal for a step to refer to the same batch.

    Parameters
    ----------
    others
        Whatever else determines the batches.
    """
    return asdict(plan.config) | {
        "n_sentences": plan.n_sentences,
        "shuffle": plan.shuffle,
        "weights": None if plan.weights is None else crc32(plan.weights.tobytes()),
        **others,
    }


def save_state(position: Position, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """State of an iteration at a position."""
    return {"version": STATE_VERSION, "epoch": position.epoch, "step": position.step, "plan": dict(fingerprint)}


def restore_position(state: Any, fingerprint: Mapping[str, Any], n_batches: Callable[[int], int]) -> Position:
    """Position of a saved state.

    Parameters
    ----------
    fingerprint
        Fingerprint of the loader that resumes.
    n_batches
        Number of batches of an epoch.

    Raises
    ------
    ConfigError
        If the state has another version, or comes from a loader with different arguments.
    """
    if not isinstance(state, dict) or state.get("version") != STATE_VERSION:
        raise ConfigError(
            f"state: got {state!r}, expected the result of state_dict() of this version ('version': {STATE_VERSION})."
        )
    plan = state.get("plan")
    saved = plan if isinstance(plan, dict) else {}
    for name, value in fingerprint.items():
        if saved.get(name) != value:
            raise ConfigError(
                f"state: got a state saved with {name}={saved.get(name)!r}, expected {value!r} as in this loader. "
                "Resume with a loader constructed with the same arguments."
            )
    epoch = require_integer("state['epoch']", state.get("epoch"))
    step = require_integer("state['step']", state.get("step"))
    last = n_batches(epoch)
    require(step <= last, "state['step']", step, f"at most {last}, the number of batches of an epoch")
    return Position(epoch, step)
