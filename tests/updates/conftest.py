"""A store to add to."""

import shutil
from pathlib import Path

import pytest

import lazypert as lp
from lazypert.store import updating
from tests.support.stores import ROLES, small_screen, write


@pytest.fixture(autouse=True)
def _no_grace(monkeypatch):
    """Let updates of stores at URLs go on at once, so that every reader has to look whether one has begun."""
    monkeypatch.setattr(updating, "GRACE", 0.0)
    monkeypatch.setattr(updating, "FRESH", 0.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    write(small_screen(), folder / "s.h5ad")
    return lp.convert(folder / "s.h5ad", folder / "s.zarr", progress=False, **ROLES)


@pytest.fixture
def store(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "s.zarr"))
