"""A store to add to."""

import shutil
from pathlib import Path

import pytest

import lazypert as lp
from tests.support.stores import ROLES, small_screen, write


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    write(small_screen(), folder / "s.h5ad")
    return lp.convert(folder / "s.h5ad", folder / "s.zarr", progress=False, **ROLES)


@pytest.fixture
def store(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "s.zarr"))
