"""A sample of many cases for the default run."""

import pytest


def sampled(cases, every=2):
    """Parameters of which every second case, or another share, runs by default; the slow run adds the others."""
    return [pytest.param(case, marks=[pytest.mark.slow] * (i % every > 0)) for i, case in enumerate(cases)]
