"""Conversion, queries and loading keep few files open: they work with a limit of 64, or say what to do."""

import os
import subprocess
import sys

import pytest

import lazypert as lp
from tests.support.stores import ROLES, copied, screen, write

SCRIPT = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[3]), int(sys.argv[3])))
import lazypert as lp
path, store = sys.argv[1:3]
roles = dict(pert_col="perturbation", control_pert="non-targeting", cell_type_col="cell_type", batch_col="batch")
lp.convert(path, store, progress=False, **roles)
ds = lp.open(store)
print(float(ds.X.sum()), lp.verify(store), ds.pert.select(perturbation="TP53").sizes["cell"])
print(len(ds.pert.knockdown(min_cells=1, targets={"TP53": "gene1"}).table))
result = lp.PerturbationPipeline(lp.PerturbationPipelineConfig(sentence_size=4)).setup([store, path])
print(sum(batch.counts.sum() for batch in result.loader("train", to="numpy", threads=2)) > 0)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs resource limits")
def test_a_limit_of_64_open_files(tmp_path):
    adata = screen()
    path = write(adata, tmp_path / "s.h5ad")
    arguments = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(path), str(tmp_path / "s.zarr"), "64"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    total, n_files, n_cells, n_judged, is_loaded = done.stdout.split()
    expected = lp.convert(path, tmp_path / "t.zarr", progress=False, **ROLES)
    assert float(total) == adata.X.sum()
    assert int(n_files) == lp.verify(expected)
    assert int(n_cells) == (adata.obs["perturbation"] == "TP53").sum()
    assert (int(n_judged), is_loaded) == (3, "True")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs resource limits")
def test_many_stores_with_a_limit_of_64_open_files(tmp_path):
    """Stores are not open while nothing is read from them."""
    adata = screen(n_obs=12, lean=True)
    one = lp.convert(write(adata, tmp_path / "s.h5ad"), tmp_path / "s.zarr", progress=False, pert_col="perturbation")
    paths = [str(copied(one, tmp_path / f"s{number}.zarr")) for number in range(40)]
    script = (
        "import resource, sys, lazypert as lp, numpy as np\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "opened = [lp.open(path) for path in sys.argv[1:]]\n"
        "print(sum(float(ds.X.sum()) for ds in opened))"
    )
    done = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == 40 * adata.X.sum()
