"""The folder of published screens and files, which only some machines have."""

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("LAZYPERT_DATA", Path(__file__).parents[3] / "shared" / "data"))


def require_data(*parts):
    """Return the path of a published file, or skip the test."""
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no {path}: set LAZYPERT_DATA to the folder that holds screens/ and encodings/")
    return path
