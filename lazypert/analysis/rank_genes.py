"""Differential expression: genes whose expression differs between perturbed cells and a reference."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from lazypert._internal.validation import require, require_choice
from lazypert.analysis.aggregate import aggregate
from lazypert.analysis.result_accessor import RESULT
from lazypert.analysis.t_test import adjust_p_values, welch_t_test
from lazypert.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.store.store import Store

METHODS, REFERENCES = ("t-test",), ("control", "rest")
"""Values of the options."""

_PSEUDOCOUNT = 1e-9
"""Added to both means of a fold change, as in Scanpy."""


def rank_genes(
    store: Store,
    groups: Groups,
    *,
    method: str,
    reference: str,
    by: Sequence[str],
    of: str,
    layer: str | None,
    genes: str | Sequence[str] | None,
) -> xr.Dataset:
    """Test every gene of every perturbation; see `PertAccessor.rank_genes`."""
    require_choice("method", method, METHODS)
    require_choice("reference", reference, REFERENCES)
    found = aggregate(store, groups, by=by, stats=("n", "mean", "var"), of=of, layer=layer, genes=genes)
    if "perturbation" not in found.dims:
        raise ConfigError(
            f"by: got {', '.join(map(repr, by))}, expected 'perturbation' among the names, and at most further columns "
            "within whose values perturbations are tested, such as ('cell_type', 'perturbation')."
        )
    require(found.sizes["gene"] > 0, "genes", [], "at least one gene")
    found["n"] = found["n"].astype(float)
    has_cells = found["n"].sum([dim for dim in found["n"].dims if dim != "perturbation"]).to_numpy() > 0
    is_control = groups.is_control_code & has_cells
    if reference == "control" and not is_control.any():
        raise ConfigError("reference: got 'control', but no cell here is a control. Select them too, or pass 'rest'.")
    tested = found.isel(perturbation=has_cells & ~groups.is_control_code)
    others = _pool(found.isel(perturbation=is_control)) if reference == "control" else _rest(tested, _pool(found))
    t, p, adjusted, change = xr.apply_ufunc(
        partial(_test, is_log1p=of == "log1p"),
        *(sample[name] for sample in (tested, others) for name in ("n", "mean", "var")),
        input_core_dims=[[], ["gene"], ["gene"]] * 2,
        output_core_dims=[["gene"]] * 4,
        dask="parallelized",
        output_dtypes=[np.float64] * 4,
    )
    variables = {
        "score": t,
        "log2_fold_change": change,
        "p_value": p,
        "p_adjusted": adjusted,
        "mean": tested["mean"],
        "reference_mean": others["mean"],
        "n": tested["n"].astype(np.int64),
        "reference_n": others["n"].astype(np.int64),
    }
    if of == "stored" and not store.matrix(layer).is_counts:  # logarithms, perhaps, or z-scores
        del variables["log2_fold_change"]
    return xr.Dataset(variables, attrs={**found.attrs, RESULT: "rank_genes", "method": method, "reference": reference})


def _pool(samples: xr.Dataset) -> xr.Dataset:
    """Pool the cells of all labels of a perturbation axis."""
    if samples.sizes["perturbation"] == 1:
        return samples.isel(perturbation=0, drop=True)
    n = samples["n"]
    mean = samples["mean"].where(n > 0, 0)
    total = n.sum("perturbation")
    pooled = (n * mean).sum("perturbation") / total.where(total > 0)
    within = ((n - 1) * samples["var"]).where(n > 1, 0)
    spread = (within + n * (mean - pooled) ** 2).sum("perturbation")
    return xr.Dataset({"n": total, "mean": pooled, "var": spread / (total - 1).where(total > 1)})


def _rest(samples: xr.Dataset, whole: xr.Dataset) -> xr.Dataset:
    """Take the cells of each label out of all of them."""
    n, mean = samples["n"], samples["mean"].where(samples["n"] > 0, 0)
    rest = whole["n"] - n
    rest_mean = (whole["n"] * whole["mean"] - n * mean) / rest.where(rest > 0)
    between = n * (mean - whole["mean"]) ** 2 + rest * (rest_mean - whole["mean"]) ** 2
    within = ((n - 1) * samples["var"]).where(n > 1, 0)
    spread = (whole["n"] - 1) * whole["var"] - within - between
    return xr.Dataset({"n": rest, "mean": rest_mean, "var": spread.clip(min=0) / (rest - 1).where(rest > 1)})


def _test(
    n: NDArray[Any], mean: NDArray[Any], var: NDArray[Any],
    n_other: NDArray[Any], mean_other: NDArray[Any], var_other: NDArray[Any],
    is_log1p: bool,
) -> tuple[NDArray[np.float64], ...]:  # fmt: skip
    """(..., n_genes) t, p-values, adjusted p-values, and log2 fold changes."""
    t, p = welch_t_test((n[..., None], mean, var), (n_other[..., None], mean_other, var_other))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        one, other = (np.expm1(mean), np.expm1(mean_other)) if is_log1p else (mean, mean_other)
        change = np.log2((one + _PSEUDOCOUNT) / (other + _PSEUDOCOUNT))
    return t, p, adjust_p_values(p), np.broadcast_to(change, t.shape)
