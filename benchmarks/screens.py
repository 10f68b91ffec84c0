"""The screens to convert and to load: simulated once in the work folder, then found there by name.

One screen is simulated. The others hold the same rows, either compressed, or repeated with new cell names.
Both are copied as a stream, in memory that does not depend on the size of the screen.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from scipy.sparse import csr_matrix

from lazypert.simulate import SimulationConfig, simulate_screen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    # What to write for a dataset: its length, its dtype, and an iterator of its values.
    Content = tuple[int, Any, Iterator[np.ndarray]]

GZIP_LEVEL = 4  # as in adata.write_h5ad(path, compression="gzip")
NUMBERS, STRINGS = 1 << 22, 1 << 17  # values in memory at once: 16 MiB of numbers, about 10 MiB of strings


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """How the cells of a screen are grouped.

    Parameters
    ----------
    cell_types, perturbations
        Number of each; the perturbations include the control and "unassigned".
    in_order
        Whether cells are sorted by both, as some loaders require. The cells are drawn in the same way as those of
        the screen in random order, but are not the same cells.
    """

    cell_types: int
    perturbations: int
    in_order: bool = False

    def options(self) -> dict[str, Any]:
        """The corresponding options of `SimulationConfig`."""
        return {
            "cell_types": tuple(f"Type{number}" for number in range(1, self.cell_types + 1)),
            "n_perturbations": self.perturbations - 2,
            "order": "grouped" if self.in_order else "random",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """A file to convert, and what a store made from it must hold."""

    name: str
    path: Path
    cells: int
    genes: int
    nnz: int
    bytes: int

    @classmethod
    def of(cls, name: str, path: Path) -> Screen:
        """Read the sizes from a file."""
        with h5py.File(path) as file:
            cells, genes = map(int, file["X"].attrs["shape"])
            nnz = len(file["X/data"])
        return cls(name=name, path=path, cells=cells, genes=genes, nnz=nnz, bytes=path.stat().st_size)


def plain(folder: Path, *, cells: int, genes: int, nnz: float, groups: Groups | None = None) -> Path:
    """Return the simulated screen, in random order unless `groups` says otherwise; `nnz` is the mean per cell."""
    tail = "" if groups is None else f"-{groups.cell_types}x{groups.perturbations}{'-grouped' * groups.in_order}"
    path = folder / f"screen-{cells}x{genes}-nnz{nnz:g}{tail}.h5ad"
    if not path.exists():
        options: dict[str, Any] = {} if groups is None else groups.options()
        simulate_screen(path, SimulationConfig(n_cells=cells, n_genes=genes, nnz_per_cell=nnz, **options))
    return path


def with_hvg(source: Path) -> Path:
    """Return a file that adds ``obsm["X_hvg"]``, the highly variable genes as a dense matrix, to `source`.

    Its X is a link to `source`, so both files must be in the same folder.
    """
    path = source.with_name(f"{source.stem}-hvg.h5ad")
    if not path.exists():
        with h5py.File(source) as read, _replacing(path) as write:
            write.attrs.update(read.attrs)
            for name in read:
                if name == "X":
                    write["X"] = h5py.ExternalLink(source.name, "X")
                else:
                    read.copy(name, write)
            hvg = read["var/highly_variable"][:]
            made = write["obsm"].create_dataset("X_hvg", (read["X"].attrs["shape"][0], int(hvg.sum())), np.float32)
            made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            for start, rows in row_blocks(read["X"]):
                made[start : start + rows.shape[0]] = rows[:, hvg].toarray()
    return path


def row_blocks(matrix: h5py.Group) -> Iterator[tuple[int, csr_matrix]]:
    """Yield blocks of a CSR matrix: the number of the first row, and the rows."""
    indptr, shape = matrix["indptr"][:].astype(np.int64), matrix.attrs["shape"]
    step = max(1, int(NUMBERS / max(1, indptr[-1] / shape[0])))
    for start in range(0, shape[0], step):
        pointers = indptr[start : start + step + 1]
        span = slice(int(pointers[0]), int(pointers[-1]))
        yield (
            start,
            csr_matrix(
                (matrix["data"][span], matrix["indices"][span], pointers - pointers[0]), (len(pointers) - 1, shape[1])
            ),
        )


def compressed(source: Path) -> Path:
    """Return the same screen with every array compressed, in the same chunks."""
    path = source.with_name(f"{source.stem}-gzip.h5ad")
    if not path.exists():
        with h5py.File(source) as read, _replacing(path) as write:
            _rewrite(read, write, lambda _, item: (len(item), item.dtype, _slabs(item)), gzip=True)
    return path


def repeated(source: Path, factor: int) -> Path:
    """Return a screen that repeats the rows of `source` `factor` times, with unique cell names."""
    path = source.with_name(f"{source.stem}-times{factor}.h5ad")
    if not path.exists():
        with h5py.File(source) as read, _replacing(path) as write:
            _rewrite(read, write, lambda where, item: _repeat(where, item, factor, len(read["X/data"])))
            cells, genes = read["X"].attrs["shape"]
            write["X"].attrs["shape"] = np.array([cells * factor, genes])
    return path


def _repeat(where: str, item: h5py.Dataset, factor: int, nnz: int) -> Content:
    top, last = where.split("/")[1], where.split("/")[-1]
    if top not in ("X", "obs") or last == "categories":
        return len(item), item.dtype, _slabs(item)
    if last == "indptr":
        dtype = np.dtype(np.int32 if nnz * factor < 2**31 else np.int64)
        later = (slab + np.int64(nnz) * copy for copy in range(factor) for slab in _slabs(item, 1))
        return (len(item) - 1) * factor + 1, dtype, _chain(np.zeros(1, dtype), later)
    copies: Iterator[np.ndarray] = (_renamed(slab, k, last) for k in range(factor) for slab in _slabs(item))
    return len(item) * factor, item.dtype, copies


def _renamed(names: np.ndarray, copy: int, column: str) -> np.ndarray:
    if column != "_index" or copy == 0:
        return names
    return np.array([f"{name.decode()}-{copy}" for name in names], dtype=object)


def _chain(first: np.ndarray, rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    yield first
    yield from rest


def _slabs(item: h5py.Dataset, start: int = 0) -> Iterator[np.ndarray]:
    step = STRINGS if item.dtype == object else NUMBERS
    for first in range(start, len(item), step):
        yield item[first : min(first + step, len(item))]


def _rewrite(
    source: h5py.Group, target: h5py.Group, content: Callable[[str, h5py.Dataset], Content], *, gzip: bool = False
) -> None:
    """Copy a group with its attributes; `content` returns what to write for each dataset."""
    target.attrs.update(source.attrs)
    for name, item in source.items():
        if isinstance(item, h5py.Group):
            _rewrite(item, target.create_group(name), content, gzip=gzip)
            continue
        length, dtype, slabs = content(item.name, item)
        shape = (length, *item.shape[1:])
        options: dict[str, Any] = {"chunks": item.chunks, "maxshape": (None, *item.shape[1:]) if item.chunks else None}
        if gzip:
            options |= {"chunks": item.chunks or True, "compression": "gzip", "compression_opts": GZIP_LEVEL}
        made = target.create_dataset(name, shape, dtype, **options)
        start = 0
        for slab in slabs:
            made[start : start + len(slab)] = slab
            start += len(slab)
        made.attrs.update(item.attrs)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[h5py.File]:
    """Open a new file that gets its name once it is complete, so that existing files are complete."""
    partial = path.with_suffix(".partial")
    try:
        with h5py.File(partial, "w") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
