"""Labels, names and attributes from files are escaped where they are shown as HTML."""

import anndata
import numpy as np
import pandas as pd

import lazypert as lp

BAD = "<script>alert('x')</script>"


def test_labels_names_and_attributes_are_escaped_in_html(tmp_path):
    n = 40
    obs = pd.DataFrame(
        {
            "pert": pd.Categorical(np.resize([f"{BAD} ctrl", BAD], n)),
            f"{BAD.replace('/', '|')} column": np.arange(n),
        },
        index=[f"{BAD}{i}" for i in range(n)],
    )
    var = pd.DataFrame(index=[f"{BAD} gene{j}" for j in range(3)])
    anndata.AnnData(np.ones((n, 3), "f4"), obs=obs, var=var).write_h5ad(tmp_path / "a.h5ad")
    store = lp.convert(tmp_path / "a.h5ad", tmp_path / "a.zarr", pert_col="pert", control_pert=f"{BAD} ctrl")
    ds = lp.open(store)
    ds.attrs["note"] = BAD
    shown = [ds, *ds.variables.values(), *(ds[name] for name in ds.variables), ds.load(), ds.pert.table()]
    for each in shown:
        assert "<script>" not in each._repr_html_()
    assert "&lt;script&gt;" in ds._repr_html_()
