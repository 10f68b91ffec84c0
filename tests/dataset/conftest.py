from __future__ import annotations

import pytest

from tests.support.stores import converted, read_store, small_grids


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A store with small chunks and shards. Do not write to it."""
    with pytest.MonkeyPatch.context() as patch:
        small_grids(patch)
        return converted(tmp_path_factory.mktemp("dataset"))[1]


@pytest.fixture(scope="session")
def expected(made):
    """What AnnData reads in it."""
    return read_store(made)
