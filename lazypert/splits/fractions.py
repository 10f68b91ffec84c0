"""Fractions of cells and of labels, taken exactly as they are written."""

from __future__ import annotations

import math
from fractions import Fraction


def exact(fraction: float) -> Fraction:
    """Return the fraction as written: 0.1 is one tenth, not the nearest float."""
    return Fraction(str(fraction))


def share(n: int, fraction: float) -> int:
    """Return ``floor(n * fraction)``, computed exactly."""
    return math.floor(n * exact(fraction))
