"""Welch's t-test from numbers of cells, means and variances, and p-values adjusted for the number of genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

if TYPE_CHECKING:
    from numpy.typing import NDArray

Sample = tuple["NDArray[Any]", "NDArray[Any]", "NDArray[Any]"]
"""Number of cells, and the mean and the unbiased variance of each gene."""


def welch_t_test(one: Sample, other: Sample) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compare the means of two samples whose variances may differ.

    As `scipy.stats.ttest_ind_from_stats` with ``equal_var=False``, but a gene with the same value in all cells of both
    samples has a t of 0 and a p-value of 1, as in Scanpy.

    Parameters
    ----------
    one, other
        Arrays that broadcast against one another, with the genes last.

    Returns
    -------
    t, and two-sided p-values; NaN where a sample has fewer than two cells.
    """
    (n1, mean1, var1), (n2, mean2, var2) = one, other
    with np.errstate(invalid="ignore", divide="ignore"):
        error1, error2 = var1 / n1, var2 / n2  # squared standard errors of the means
        variance = error1 + error2
        t = (mean1 - mean2) / np.sqrt(variance)
        df = variance**2 / (error1**2 / (n1 - 1) + error2**2 / (n2 - 1))
    is_constant = (variance == 0) & (mean1 == mean2)
    t = np.where(is_constant, 0.0, t)
    df = np.where(variance == 0, 1.0, df)
    p = 2 * special.stdtr(df, -np.abs(t))
    return t, np.where(is_constant, 1.0, p)


def adjust_p_values(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Adjust p-values by the method of Benjamini and Hochberg, along the last axis.

    Parameters
    ----------
    p
        (..., n) p-values; those that are NaN stay so, and do not count as tests.

    Returns
    -------
    (..., n) adjusted p-values.

    References
    ----------
    Benjamini and Hochberg (1995), https://doi.org/10.1111/j.2517-6161.1995.tb02031.x
    """
    order = np.argsort(p, axis=-1)  # NaN last
    ascending = np.take_along_axis(p, order, axis=-1)
    n_tests = np.count_nonzero(~np.isnan(p), axis=-1, keepdims=True)
    scaled = ascending * n_tests / np.arange(1, p.shape[-1] + 1)
    monotone = np.fmin.accumulate(scaled[..., ::-1], axis=-1)[..., ::-1]
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.where(np.isnan(ascending), np.nan, np.minimum(monotone, 1)), axis=-1)
    return adjusted
