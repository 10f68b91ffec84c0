"""Records of completed tasks, read back when a conversion resumes."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def save_checkpoint(path: Path, value: dict[str, Any]) -> None:
    """Note that a task is done; the note is there as a whole or not at all."""
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    draft.write_text(json.dumps(value))
    draft.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """What was noted, or None where nothing was, or a power cut took it."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None
