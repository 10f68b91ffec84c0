"""An atlas of many cells and few genes, written as a stream: what grows with cells shows in it, and little else.

Every value follows from the cell's number, so an atlas of any size is made in bounded memory, always alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

CELL_TYPES, PERTURBATIONS, BATCHES, GENES = 50, 1_000, 20, 50
CONTROL = "non-targeting"
ROLES = {
    "pert_col": "perturbation",
    "control_pert": CONTROL,
    "cell_type_col": "cell_type",
    "batch_col": "batch",
}
"""Options of `lazypert.convert` for an atlas."""

_STEP = 1_000_000  # cells in memory at once


def atlas(folder: Path, *, cells: int) -> Path:
    """Return the H5AD file of an atlas, which is written into a folder unless it is there.

    Parameters
    ----------
    cells
        Number of cells, in random order. Each has one or two nonzero counts, and one in ten is a control.
    """
    path = folder / f"atlas-{cells}.h5ad"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with h5py.File(part, "w", libver="latest") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        _write_cells(file, cells)
        var = _frame(file, "var", [])
        var.create_dataset("_index", data=_perturbations()[1 : GENES + 1], dtype=h5py.string_dtype())
    part.replace(path)
    return path


def _write_cells(file: h5py.File, cells: int) -> None:
    obs = _frame(file, "obs", ["perturbation", "cell_type", "batch", "n_counts"])
    names = obs.create_dataset("_index", (cells,), h5py.string_dtype(), chunks=(min(cells, 65536),))
    names.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    columns = {
        "perturbation": _categorical(obs, "perturbation", _perturbations(), cells, np.int16),
        "cell_type": _categorical(obs, "cell_type", [f"Type{n}" for n in range(1, CELL_TYPES + 1)], cells, np.int8),
        "batch": _categorical(obs, "batch", [f"Batch{n}" for n in range(1, BATCHES + 1)], cells, np.int8),
    }
    n_counts = _numbers(obs, "n_counts", cells, np.float32)
    n_counts.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    X = file.create_group("X")
    X.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": np.array([cells, GENES])})
    data, indices = _numbers(X, "data", None, np.float32), _numbers(X, "indices", None, np.int32)
    indptr, n_values = _numbers(X, "indptr", cells + 1, np.int64), 0
    indptr[0] = 0
    for start in range(0, cells, _STEP):
        stop = min(cells, start + _STEP)
        random = np.random.default_rng(np.random.SeedSequence((0, start)))
        size = stop - start
        names[start:stop] = [f"CELL{number:09d}-1".encode() for number in range(start, stop)]
        perturbation = random.integers(1, PERTURBATIONS, size)
        perturbation[random.random(size) < 0.1] = 0
        columns["perturbation"][start:stop] = perturbation
        columns["cell_type"][start:stop] = random.integers(0, CELL_TYPES, size)
        columns["batch"][start:stop] = random.integers(0, BATCHES, size)
        # Two counts of different genes, of which half of the cells keep only the first one.
        genes = np.sort(np.stack([random.integers(0, GENES // 2, size), random.integers(GENES // 2, GENES, size)], 1))
        counts = random.integers(1, 20, (size, 2)).astype(np.float32)
        kept = np.ones((size, 2), bool)
        kept[:, 1] = random.random(size) < 0.5
        lengths = kept.sum(axis=1)
        n_counts[start:stop] = (counts * kept).sum(axis=1)
        stop_value = n_values + int(lengths.sum())
        for dataset, values in ((data, counts[kept]), (indices, genes[kept])):
            dataset.resize((stop_value,))
            dataset[n_values:stop_value] = values
        indptr[start + 1 : stop + 1] = n_values + np.cumsum(lengths)
        n_values = stop_value


def _perturbations() -> list[str]:
    return [CONTROL, *(f"GENE{number}" for number in range(1, PERTURBATIONS))]


def _frame(file: h5py.File, name: str, columns: list[str]) -> h5py.Group:
    group = file.create_group(name)
    group.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
    group.attrs["column-order"] = np.array(columns, dtype=h5py.string_dtype())
    return group


def _categorical(obs: h5py.Group, name: str, labels: list[str], cells: int, dtype: Any) -> h5py.Dataset:
    group = obs.create_group(name)
    group.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False})
    categories = group.create_dataset("categories", data=labels, dtype=h5py.string_dtype())
    categories.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    codes = _numbers(group, "codes", cells, dtype)
    codes.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return codes


def _numbers(group: h5py.Group, name: str, length: int | None, dtype: Any) -> h5py.Dataset:
    chunk = 65536 if length is None else max(1, min(length, 65536))
    return group.create_dataset(name, (length or 0,), dtype, chunks=(chunk,), maxshape=(length,))
