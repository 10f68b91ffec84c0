"""Knockdown quality control written out over a dense matrix: slow, and short enough to check by eye."""

import numpy as np
import pandas as pd

from tests.support.screens import CONTROL

MATCHED_ON = {"all": [], "cell_type": ["cell_type", "dataset"], "batch": ["cell_type", "dataset", "batch"]}


def reference_filter(dense, frame, genes, config, control=CONTROL):
    """Mask and table of the filter, from a dense (cell, gene) matrix and a frame of labels.

    The matrix is NaN where a cell's dataset lacks the gene. Every context is filtered as if it were all there is.
    """
    dense = np.asarray(dense, dtype=np.float64)
    if config.normalise_depth:
        total = np.nansum(dense, axis=1, keepdims=True)
        dense = dense / np.where(total > 0, total, 1) * 10_000
    frame = frame.reset_index(drop=True)
    mask, tables = np.zeros(len(frame), dtype=bool), []
    axes = list(config.verdict_by)
    contexts = sorted(frame[axes].dropna().drop_duplicates().itertuples(index=False, name=None)) if axes else [()]
    for context in contexts:
        inside = np.full(len(frame), True)
        for axis, label in zip(axes, context, strict=True):
            inside &= (frame[axis] == label).to_numpy()
        mask[inside], rows = one_context(dense[inside], frame[inside], genes, config, control)
        tables += [dict(zip(axes, context, strict=True)) | row for row in rows]
    return mask, pd.DataFrame(tables)


def one_context(dense, frame, genes, config, control):
    """Mask and table rows of cells that are judged together."""
    labelled = (frame["perturbation"].notna() & frame["cell_type"].notna()).to_numpy()
    perturbation = frame["perturbation"].to_numpy(dtype=object)
    # A control without a cell type does not pass and is in no split, but it contributes to the control means.
    controls = perturbation == control
    stratum_of = {}
    for match, axes in MATCHED_ON.items():
        keys = ["/".join(str(frame[axis].iloc[i]) for axis in axes) for i in range(len(frame))]
        stratum_of[match] = np.array(keys, dtype=object)
    mask = controls & labelled
    rows = []
    for label in sorted({p for p, ok in zip(perturbation, labelled, strict=True) if ok and p != control}):
        cells = np.flatnonzero((perturbation == label) & labelled)
        row = {"perturbation": label, "n_cells": len(cells), "n_compared": 0, "control_mean": np.nan}
        row |= {"perturbed_mean": np.nan, "residual_expression": np.nan, "n_kept": 0, "passed": False}
        rows.append(row)
        own = dense[:, genes.index(label)] if label in genes else np.full(len(frame), np.nan)  # the first of that name
        if np.isnan(own[cells]).all():
            row["reason"] = "target gene not measured"
            continue
        expected = np.array([control_mean(own, controls, stratum_of, config.control_match, cell) for cell in cells])
        is_compared = ~np.isnan(own[cells]) & np.isfinite(expected)
        cells, expected = cells[is_compared], expected[is_compared]
        row["n_compared"] = len(cells)
        if not len(cells):
            row["reason"] = "no controls to compare with"
            continue
        row["control_mean"] = expected[0] if len(set(expected)) == 1 else expected.mean()
        row["perturbed_mean"] = own[cells].mean()
        if row["control_mean"] == 0:
            row["reason"] = "target not expressed in controls"
            continue
        ratio = row["residual_expression"] = row["perturbed_mean"] / row["control_mean"]
        is_down = config.direction in ("down", "both") and ratio < config.residual_expression
        is_up = config.direction in ("up", "both") and ratio > 1 / config.residual_expression
        if not is_down and not is_up:
            refusals = {"down": "too high", "up": "too low", "both": "too close to 1"}
            row["reason"] = f"residual expression {refusals[config.direction]}"
            continue
        kept = [
            cell
            for cell, mean in zip(cells, expected, strict=True)
            if mean > 0
            and (
                own[cell] / mean < config.cell_residual_expression
                if is_down
                else own[cell] / mean > 1 / config.cell_residual_expression
            )
        ]
        if len(kept) < config.min_cells:
            row["reason"] = "too few cells left"
            continue
        row |= {"n_kept": len(kept), "passed": True, "reason": "passed"}
        mask[kept] = True
    return mask, rows


def control_mean(own, controls, stratum_of, match, cell):
    """Mean of a gene in the controls that a cell is compared with; NaN without any."""
    measured = controls & ~np.isnan(own)
    for narrow in [match, "cell_type"] if match == "batch" else [match]:
        chosen = measured & (stratum_of[narrow] == stratum_of[narrow][cell])
        if chosen.any():
            return own[chosen].mean()
    return np.nan


def cell_load_mask(dense, perturbation, genes, residual=0.30, cell_residual=0.50, min_cells=30, control=CONTROL):
    """Mask by the rules of cell-load's ``filter_on_target_knockdown``, which sees one file; a mean below 1e-8 is zero.

    Parameters
    ----------
    dense
        (n_obs, n_genes) values.
    perturbation
        (n_obs,) labels.
    """
    controls = perturbation == control
    keep = controls.copy()
    for label in set(perturbation) - {control}:
        cells = perturbation == label
        if label not in genes:
            continue
        own = dense[:, genes.index(label)].astype(np.float64)
        mean = own[controls].mean()
        if np.isclose(mean, 0) or not own[cells].mean() / mean < residual:
            continue
        kept = cells & (own / mean < cell_residual)
        if kept.sum() >= min_cells:
            keep |= kept
    return keep
