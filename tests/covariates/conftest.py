"""A drug screen, and its stores with and without covariates. Don't write to them."""

import pytest

from tests.support.drug_screen import convert, drug_screen
from tests.support.stores import read_store


@pytest.fixture(scope="package")
def screen():
    return drug_screen()


@pytest.fixture(scope="package")
def store(screen, tmp_path_factory):
    return convert(screen, tmp_path_factory.mktemp("with") / "screen.zarr")


@pytest.fixture(scope="package")
def plain_store(screen, tmp_path_factory):
    return convert(screen, tmp_path_factory.mktemp("without") / "screen.zarr", covariates=())


@pytest.fixture(scope="package")
def obs(store):
    """The obs table in the order of the store's rows."""
    return read_store(store).obs
