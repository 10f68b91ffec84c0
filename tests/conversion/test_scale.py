"""Peak memory of conversion and pipeline on a large screen, measured in its own process."""

import json
import subprocess
import sys

import pytest

from lazypert.simulate import SimulationConfig, simulate_screen

SCRIPT = """
import json, re, sys
import anndata, h5py, jax, jax.numpy as jnp
import lazypert as lp
import lazypert.loading.loader, lazypert_converters.h5ad

def peak_mib():
    # ru_maxrss would start at the peak of the parent process.
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

jax.block_until_ready(jnp.zeros(3) + 1)
source, store = sys.argv[1:]
peaks = {"imports": peak_mib()}
lp.convert(source, store, pert_col="perturbation", control_pert="non-targeting", cell_type_col="cell_type",
           batch_col="batch", memory_limit="256MiB")
peaks["convert"] = peak_mib()
result = lp.PerturbationPipeline(lp.PerturbationPipelineConfig(
    enable_knockdown_filter=True, var_gene_col="gene_name", sentence_size=64, sentences_per_batch=8,
)).setup([store])
peaks["pipeline"] = peak_mib()
cells = sum(int((~batch.is_padding).sum()) for batch in result.loader("train"))
peaks["epoch"] = peak_mib()
print(json.dumps({"peaks": peaks, "cells": cells, "train": len(result.train_indices)}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_100000_cells_stay_under_512_mib(tmp_path):
    screen = tmp_path / "screen.h5ad"
    simulate_screen(screen, SimulationConfig(n_cells=100_000, n_genes=5_000, nnz_per_cell=1_000))
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(screen), str(tmp_path / "screen.zarr")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    print(result)
    assert result["cells"] == result["train"]
    # The matrix takes 2 GB as a dense array and 0.8 GB as it is in the file; the last peak includes those before.
    assert result["peaks"]["epoch"] - result["peaks"]["imports"] < 512
