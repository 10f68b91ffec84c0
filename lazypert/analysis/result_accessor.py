"""``result.pert``: what can be done with a Dataset of statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lazypert._internal.validation import named_options, require_choice, require_integer
from lazypert.errors import ConfigError

if TYPE_CHECKING:
    import xarray as xr
    from anndata import AnnData

RESULT = "statistics"
"""Attribute that tells such a Dataset from a screen; its value is the call that made it."""


class ResultAccessor:
    """Statistics of genes per group, as from ``ds.pert.aggregate``."""

    def __init__(self, ds: xr.Dataset) -> None:
        self._ds = ds

    def __repr__(self) -> str:
        return f"ResultAccessor({self._ds.attrs[RESULT]} of {dict(self._ds.sizes)})"

    @named_options
    def to_anndata(self, x: str | None = None, *, min_cells: int = 1) -> AnnData:
        """Compute the statistics, as an AnnData with a row for each group.

        Parameters
        ----------
        x
            Statistic that becomes ``X``; by default the first one. The others become layers.
        min_cells
            Groups of fewer cells are left out, and not computed.

        Returns
        -------
        AnnData with a categorical obs column for each dimension and the numbers of cells, ``n``. Names of rows are the
        labels, joined by ``"_"``.

        Raises
        ------
        ConfigError
            When there is no such statistic, or the Dataset lacks ``gene`` or ``n``.
        """
        import pandas as pd
        from anndata import AnnData

        ds = self._ds
        require_integer("min_cells", min_cells)
        stats = [str(name) for name, values in ds.data_vars.items() if "gene" in values.dims]
        if not stats or "n" not in ds:
            raise ConfigError(
                "to_anndata: expected a Dataset with the dimension 'gene' and the variable 'n'; got the dimensions "
                f"{', '.join(map(repr, ds.dims))} and the variables {', '.join(map(repr, ds.data_vars))}. Ask for the "
                "statistic 'n' too, and select genes with a list, such as ds.sel(gene=['TP53'])."
            )
        x = stats[0] if x is None else x
        require_choice("x", x, tuple(stats))
        if not ds["n"].dims:
            ds = ds.expand_dims(group=["all"])
        dims = [str(dim) for dim in ds["n"].dims]
        kept = dict(zip(dims, np.nonzero(ds["n"].to_numpy() >= min_cells), strict=True))
        labels = {dim: ds[dim].to_numpy()[at] for dim, at in kept.items()}
        names = ["_".join(map(str, row)) for row in zip(*labels.values(), strict=True)]
        obs = pd.DataFrame({dim: pd.Categorical(found) for dim, found in labels.items()}, pd.Index(names, dtype=str))
        for name, values in ds.data_vars.items():
            if "gene" not in values.dims:
                obs[name] = values.broadcast_like(ds["n"]).transpose(*dims).to_numpy()[tuple(kept.values())]
        needed = {dim: np.unique(at) for dim, at in kept.items()}  # nothing else is computed
        computed = ds[stats].isel(needed).broadcast_like(ds["n"].isel(needed)).transpose(*dims, "gene").compute()
        at = tuple(np.searchsorted(needed[dim], at) for dim, at in kept.items())
        rows = {name: computed[name].to_numpy()[at] for name in stats}
        var = pd.DataFrame(index=pd.Index(ds["gene"].to_numpy(), name="gene"))
        return AnnData(rows.pop(x), obs=obs, var=var, layers=rows, uns={str(k): v for k, v in ds.attrs.items()})
