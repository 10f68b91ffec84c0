"""A small screen to load, and what identifies its cells."""

import anndata
import pytest

from benchmarks import fingerprints as checks
from benchmarks import screens
from benchmarks.screens import Groups
from tests.support.load_runs import SCREEN


@pytest.fixture(scope="session")
def screen(tmp_path_factory):
    groups = Groups(cell_types=2, perturbations=8)
    return screens.plain(tmp_path_factory.mktemp("screens"), **SCREEN, groups=groups)


@pytest.fixture(scope="session")
def genes(screen):
    return checks.genes_of(screen)


@pytest.fixture(scope="session")
def cells(screen, genes):
    return checks.Cells.of(screen, genes)


@pytest.fixture(scope="session")
def adata(screen):
    return anndata.read_h5ad(screen)
