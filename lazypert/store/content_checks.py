"""Checks that the tables of a store agree with one another, made when they are read.

A checksum says that bytes are those that were written. It does not say that what was written makes sense, if another
program, or someone, wrote the store. Without these checks such a store would give wrong cells without an error.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert.errors import ConfigError, StoreDamagedError
from lazypert.screen.roles import Roles
from lazypert.screen.run_keys import encode, in_run_order, run_radices
from lazypert.store.format import MARKER, TABLES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups

_PER_CELL = ("batch", "name_hash", "order", "source_row", "facts/total", "facts/n_genes", "facts/own_target")


def contradiction(key: str, problem: str) -> StoreDamagedError:
    """Make the error for content that cannot be right, whatever its checksum says."""
    return StoreDamagedError(
        f"{key}: {problem}. The content of the store contradicts itself, even if its checksums are right: it was not "
        "written by lazypert, or was changed afterwards. Use a copy of the store from before, or convert the source "
        "again to another path."
    )


def check_attributes(attrs: Mapping[str, Any]) -> None:
    """Check what the root attributes say of sizes, roles and matrices.

    Raises
    ------
    StoreDamagedError
        If something is missing, or of the wrong type.
    ConfigError
        If the roles are those of a later version.
    """
    for name in ("n_obs", "n_vars"):
        if not _is_count(attrs.get(name)):
            raise _bad_attribute(name, attrs.get(name), "a number of cells or genes")
    for name in ("roles", "matrices", "summary"):
        if not isinstance(attrs.get(name), dict):
            raise _bad_attribute(name, attrs.get(name), "a JSON object")
    try:
        Roles.from_json(attrs["roles"])
    except ConfigError as error:
        if "does not know" in str(error):
            raise
        raise contradiction("zarr.json", f"attribute roles: {str(error).rstrip('.')}") from error
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise contradiction("zarr.json", f"attribute roles: {error}") from error
    for matrix, stats in attrs["matrices"].items():
        if not isinstance(stats, dict):
            raise _bad_attribute(f"matrices/{matrix}", stats, "a JSON object")
        for name in ("nnz", "n_cols"):
            if not _is_count(stats.get(name)):
                raise _bad_attribute(f"matrices/{matrix}/{name}", stats.get(name), "a whole number")
        for name in ("minimum", "maximum"):
            if not _is_number(stats.get(name)):
                raise _bad_attribute(f"matrices/{matrix}/{name}", stats.get(name), "a number")
    if "X" in attrs["matrices"] and attrs["matrices"]["X"]["n_cols"] != attrs["n_vars"]:
        raise _bad_attribute("matrices/X/n_cols", attrs["matrices"]["X"]["n_cols"], f"{attrs['n_vars']:,}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and not math.isnan(value)


def _bad_attribute(name: str, value: Any, expected: str) -> StoreDamagedError:
    return contradiction("zarr.json", f"attribute {MARKER}/{name}: got {str(value)[:60]!r}, expected {expected}")


def check_length(path: str, length: int, n_obs: int) -> None:
    """Check the length of an array that has a value for each cell."""
    is_table = path.startswith(f"{TABLES}/")
    table = re.sub(r"^appended_\d+/", "", path.removeprefix(f"{TABLES}/"))
    per_cell = table in _PER_CELL if is_table else path.startswith("obs/") and not path.endswith("/categories")
    if per_cell and length != n_obs:
        raise contradiction(path, f"got {length:,} values, expected {n_obs:,}, one per cell")


def check_codes(path: str, codes: NDArray[Any], n_labels: int) -> NDArray[Any]:
    """Return codes after checking that each is -1 or that of a label."""
    if codes.dtype.kind not in "iu":
        raise contradiction(path, f"got {codes.dtype}, expected integers")
    if codes.size and not -1 <= int(codes.min()) <= int(codes.max()) < n_labels:
        raise contradiction(path, f"got codes from {codes.min()} to {codes.max()}, expected -1 to {n_labels - 1}")
    return codes


def check_order(path: str, rows: NDArray[Any], n_obs: int) -> NDArray[Any]:
    """Return row numbers after checking that each row occurs once."""
    if rows.dtype.kind not in "iu" or (rows.size and not 0 <= int(rows.min()) <= int(rows.max()) < n_obs):
        raise contradiction(path, f"got numbers that are not rows, expected 0 to {n_obs - 1:,}")
    seen = np.zeros(n_obs, bool)
    seen[rows] = True
    if len(rows) != n_obs or not seen.all():
        raise contradiction(path, "some rows occur twice, and others never")
    return rows


def check_groups(groups: Groups, tables: str) -> Groups:
    """Return groups after checking their runs, labels and numbers of cells; no cell is looked at.

    Parameters
    ----------
    tables
        Path of the tables that they were read from.

    Raises
    ------
    StoreDamagedError
        If the runs do not cover the cells one after another, a code has no label, labels are not sorted, or the
        numbers of cells by batch do not add up.
    """
    runs, start, stop = f"{tables}/runs", groups.start, groups.stop
    columns: dict[str, NDArray[Any]] = {"start": start, "stop": stop, "condition": groups.condition, **groups.codes}
    for name, column in columns.items():
        if len(column) != len(start) or column.dtype.kind not in "iu":
            raise contradiction(
                f"{runs}/{name}", f"got {len(column):,} values of {column.dtype}, expected {len(start):,}"
            )
    edges = np.append(start, groups.n_obs)
    if edges[0] != 0 or (np.diff(edges.astype(np.int64)) <= 0).any() or (stop != edges[1:]).any():
        raise contradiction(runs, f"the runs do not cover the {groups.n_obs:,} cells one after another")
    for axis, labels in groups.labels.items():
        if len(np.unique(labels)) != len(labels) or (labels[1:] < labels[:-1]).any():
            raise contradiction(f"{tables}/labels/{axis}", "the labels are not sorted, or one occurs twice")
    for axis, codes in groups.codes.items():
        check_codes(f"{runs}/{axis}", codes, len(groups.labels[axis]))
    n_conditions = len(groups.conditions) if groups.roles.covariates else 1
    if len(start) and not 0 <= groups.condition.min() <= groups.condition.max() < n_conditions:
        raise contradiction(f"{runs}/condition", f"got conditions beyond the {n_conditions:,} that there are")
    radices = run_radices(groups.labels, groups.conditions)
    if (np.diff(encode(in_run_order(groups.codes, groups.condition), radices, len(start))) <= 0).any():
        raise contradiction(runs, "the runs are not in the order of their labels, or two have the same ones")
    _check_batch_counts(groups, f"{tables}/subgroups")
    if groups.row_order is not None:
        check_order(f"{tables}/order", groups.row_order, groups.n_obs)
    return groups


def _check_batch_counts(groups: Groups, where: str) -> None:
    counts, n_batches = groups.known_batch_counts, len(groups.labels["batch"])
    if counts is None:
        return
    if not len(counts.run) == len(counts.batch) == len(counts.n_cells):
        raise contradiction(where, "its columns differ in length")
    check_codes(f"{where}/batch", counts.batch, n_batches)
    if len(counts.run) and not 0 <= int(counts.run.min()) <= int(counts.run.max()) < len(groups.start):
        raise contradiction(f"{where}/run", f"got runs beyond the {len(groups.start):,} that there are")
    if (np.diff(counts.keys(n_batches)) <= 0).any():
        raise contradiction(where, "the subgroups are not sorted, or one occurs twice")
    summed = np.zeros(len(groups.start), np.int64)
    np.add.at(summed, counts.run, counts.n_cells)
    if (counts.n_cells <= 0).any() or (summed != groups.sizes).any():
        raise contradiction(f"{where}/n_cells", "the numbers of cells by batch do not add up to the sizes of the runs")


def check_hashes(hashes: NDArray[np.uint64], groups: Groups) -> NDArray[np.uint64]:
    """Return the name hashes of all cells after checking that those of each run ascend."""
    ordered = hashes if groups.row_order is None else hashes[groups.row_order]
    descends = ordered[1:] < ordered[:-1]
    descends[groups.start[1:] - 1] = False
    if descends.any():
        raise contradiction(f"{TABLES}/name_hash", "the cells of a run are not in the order of their hashes")
    return hashes
