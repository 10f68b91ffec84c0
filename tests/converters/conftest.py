"""Fixtures that several of these modules share."""

import pytest

from tests.support.stores import screen
from tests.support.zarr_stores import write_zarr


@pytest.fixture(scope="package")
def anndata_store(tmp_path_factory):
    """Path of a read-only store that AnnData wrote."""
    return write_zarr(screen(), tmp_path_factory.mktemp("zarr") / "a.zarr")
