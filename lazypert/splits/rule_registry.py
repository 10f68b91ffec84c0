"""Splitters by name: each adds itself when it is defined, so that saved rules can be applied again."""

from __future__ import annotations

from typing import Any

RULES: dict[str, tuple[Any, Any]] = {}
"""For the name of each splitter: its class, and the class of its config."""
