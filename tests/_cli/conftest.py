import pytest

from lazypert._cli import main
from lazypert.simulate import reference_screen
from tests.support.cli import ALL_ROLES


@pytest.fixture(scope="module")
def screen(tmp_path_factory):
    return reference_screen(tmp_path_factory.mktemp("cli") / "screen.h5ad")


@pytest.fixture(scope="module")
def store(screen):
    path = screen.with_name("screen.zarr")
    assert main(["convert", str(screen), str(path), *ALL_ROLES]) == 0
    return path
