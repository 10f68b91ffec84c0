"""The peak memory of an epoch does not depend on the size of the store."""

import subprocess
import sys

import pytest

import lazypert as lp
from lazypert.simulate import SimulationConfig, simulate_screen

FIRST_BATCH = """
import sys, time
import jax
import lazypert as lp, lazypert.loading.loader, lazypert.pipeline
from lazypert._internal.memory import peak_memory

jax.devices()
before = peak_memory()
config = lp.PerturbationPipelineConfig(train_frac=1.0, valid_frac=0.0, sentence_size=32, sentences_per_batch=8)
result = lp.PerturbationPipeline(config).setup(sys.argv[1])
for batch in result.loader("train", layout=sys.argv[2]):
    jax.block_until_ready(batch)
print(peak_memory() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_memory_stays_below_one_gibibyte_for_any_store_size(tmp_path):
    """At the defaults, with controls, for a store and for one of four times its size."""
    peaks = {}
    for n_cells in (8_000, 32_000):
        file = tmp_path / f"{n_cells}.h5ad"
        simulate_screen(file, SimulationConfig(n_cells=n_cells, n_genes=18_000, nnz_per_cell=3_500))
        roles = {"pert_col": "perturbation", "cell_type_col": "cell_type", "batch_col": "batch"}
        store = lp.convert(file, tmp_path / f"{n_cells}.zarr", **roles, control_pert="non-targeting")
        file.unlink()
        for layout in ("dense", "csr"):
            done = subprocess.run(
                [sys.executable, "-c", FIRST_BATCH, str(store), layout], capture_output=True, text=True, check=True
            )
            peaks[n_cells, layout] = int(done.stdout)
    assert max(peaks.values()) < 2**30, peaks
    for layout in ("dense", "csr"):
        assert peaks[32_000, layout] < peaks[8_000, layout] + 200 * 2**20, peaks
