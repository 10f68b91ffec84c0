"""A small part of a large group is stored together, so that reading it does not read the whole group."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import lazypert as lp
from lazypert import PerturbationPipeline, PerturbationPipelineConfig
from tests.support.counting import CountingReader
from tests.support.stores import ROLES

N_GENES, N_NONZERO, GROUP_SIZE = 7000, 3500, 1000


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Three groups of 1,000 cells with 3,500 nonzeros each, as deep as published screens."""
    folder, rng = tmp_path_factory.mktemp("deep"), np.random.default_rng(0)
    labels = np.repeat(["A", "B", "non-targeting"], GROUP_SIZE)
    n = len(labels)
    columns = np.arange(N_NONZERO, dtype=np.int32) * 2 + rng.integers(0, 2, (n, N_NONZERO), dtype=np.int32)
    values = rng.geometric(0.5, n * N_NONZERO).astype(np.float32)
    counts = sparse.csr_matrix((values, columns.ravel(), np.arange(n + 1) * N_NONZERO), shape=(n, N_GENES))
    obs = pd.DataFrame({"perturbation": labels, "cell_type": "T", "batch": "b"}, index=[f"c{i}" for i in range(n)])
    anndata.AnnData(counts, obs.astype("category")).write_h5ad(folder / "deep.h5ad")
    return lp.convert(folder / "deep.h5ad", folder / "deep.zarr", **ROLES)


def bytes_read(result, split):
    """Bytes of the values and indices that one pass over a split reads."""
    CountingReader.seen.clear()
    loader = result.loader(split, sentence_size=50, shuffle=False, n_basal_samples=0, layout="csr", to="numpy")
    n_cells = sum(int((~batch.is_padding).sum()) for batch in loader)
    assert n_cells == len(result.splits[split])
    return sum(length for key, length in CountingReader.seen if key.startswith(("X/data", "X/indices")))


def test_validation_reads_little_more_than_its_cells(store, monkeypatch):
    monkeypatch.setattr("lazypert.store.store.LocalReader", CountingReader)
    CountingReader.seen = []
    everything = PerturbationPipeline(PerturbationPipelineConfig(train_frac=1, valid_frac=0)).setup(store)
    whole = bytes_read(everything, "train")
    for seed in range(3):
        result = PerturbationPipeline(PerturbationPipelineConfig(seed=seed)).setup(store)
        assert [len(result.splits[name]) for name in ("train", "valid", "test")] == [2400, 300, 300]
        assert bytes_read(result, "valid") <= 2.5 * whole / 10
