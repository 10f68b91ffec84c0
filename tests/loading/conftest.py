import pytest

from lazypert.downsampling.config import DownsamplingConfig


@pytest.fixture(scope="module")
def source(reference):
    return reference.source


@pytest.fixture(scope="module")
def all_options(source):
    """Loader options that use every feature."""
    return {
        "layout": "csr",
        "genes": [source.var.index[i] for i in (3, 1, 150)],
        "target_sum": 1e4,
        "downsampling": DownsamplingConfig(fraction=0.5),
        "extras": ("pert_emb", "barcode"),
        "obs": (source.stores[0].obs_columns[0],),
    }
