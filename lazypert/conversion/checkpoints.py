"""Checkpoints: records of completed tasks, from which an interrupted conversion resumes."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def save_checkpoint(path: Path, record: dict[str, Any]) -> None:
    """Save the record of a completed task; the file appears complete or not at all."""
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    draft.write_text(json.dumps(record))
    draft.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Load a record, or return None if it does not exist or a power cut truncated it."""
    try:
        record = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return record if isinstance(record, dict) else None
