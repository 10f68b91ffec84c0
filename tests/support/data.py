"""The folder of published screens and odd files, which only some machines have."""

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("LAZYPERT_DATA", Path(__file__).parents[3] / "shared" / "data"))


def require_data(*parts):
    """Path of a published file, or a skip that says what is missing."""
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no {path}: set LAZYPERT_DATA to the folder that holds screens/ and encodings/")
    return path
