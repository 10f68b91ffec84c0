from __future__ import annotations

import pytest

from lazypert import PerturbationAnnDataSource, PerturbationSourceConfig
from tests.support.screens import holey_screen, source_of


@pytest.fixture(scope="module")
def open_store(tmp_path_factory):
    """Open one store of `holey_screen()` with any options."""
    store = source_of(holey_screen(), tmp_path_factory.mktemp("store"), order="grouped").store.path
    return lambda **options: PerturbationAnnDataSource(PerturbationSourceConfig(file_path=store, **options))
