"""The screens to convert and to load: simulated once in the work folder, then found there by the name.

One screen is simulated. The others hold the same rows: compressed, or several times over under new
names. Both copies stream, so they need no more memory for a larger screen.
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

    # What to write for a dataset: its length, its dtype, and its values in pieces.
    Content = tuple[int, Any, Iterator[np.ndarray]]

GZIP_LEVEL = 4  # as in adata.write_h5ad(path, compression="gzip")
NUMBERS, STRINGS = 1 << 22, 1 << 17  # values held at once: 16 MiB of numbers, some 10 MiB of strings


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """How the cells of a screen fall into groups.

    Parameters
    ----------
    cell_types, perturbations
        How many of each; the control is one of the perturbations, and so is "unassigned".
    in_order
        Whether cells lie sorted by both, as some loaders need them; these are other cells than those
        of the screen in random order, drawn in the same way.
    """

    cell_types: int
    perturbations: int
    in_order: bool = False

    def options(self) -> dict[str, Any]:
        """The same in the words of `SimulationConfig`."""
        return {
            "cell_types": tuple(f"Type{number}" for number in range(1, self.cell_types + 1)),
            "n_perturbations": self.perturbations - 2,
            "order": "grouped" if self.in_order else "random",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """A file to convert, and what a store made of it must hold."""

    name: str
    path: Path
    cells: int
    genes: int
    nnz: int
    bytes: int

    @classmethod
    def of(cls, name: str, path: Path) -> Screen:
        """Look into a file."""
        with h5py.File(path) as file:
            cells, genes = map(int, file["X"].attrs["shape"])
            nnz = len(file["X/data"])
        return cls(name=name, path=path, cells=cells, genes=genes, nnz=nnz, bytes=path.stat().st_size)


def plain(folder: Path, *, cells: int, genes: int, nnz: float, groups: Groups | None = None) -> Path:
    """Return the simulated screen, its cells in random order unless `groups` says so; `nnz` is the mean a cell."""
    tail = "" if groups is None else f"-{groups.cell_types}x{groups.perturbations}{'-grouped' * groups.in_order}"
    path = folder / f"screen-{cells}x{genes}-nnz{nnz:g}{tail}.h5ad"
    if not path.exists():
        options: dict[str, Any] = {} if groups is None else groups.options()
        simulate_screen(path, SimulationConfig(n_cells=cells, n_genes=genes, nnz_per_cell=nnz, **options))
    return path


def with_hvg(source: Path) -> Path:
    """Return a file that shows `source`, and its highly variable genes dense as ``obsm["X_hvg"]``.

    X stays where it is, in `source`, beside which the file must lie.
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
    """Read a CSR matrix piece by piece: the number of the first row, and the rows."""
    indptr, shape = matrix["indptr"][:].astype(np.int64), matrix.attrs["shape"]
    step = max(1, int(NUMBERS / max(1, indptr[-1] / shape[0])))
    for start in range(0, shape[0], step):
        upto = indptr[start : start + step + 1]
        span = slice(int(upto[0]), int(upto[-1]))
        yield (
            start,
            csr_matrix((matrix["data"][span], matrix["indices"][span], upto - upto[0]), (len(upto) - 1, shape[1])),
        )


def compressed(source: Path) -> Path:
    """Return the same screen with every array compressed, in the same chunks."""
    path = source.with_name(f"{source.stem}-gzip.h5ad")
    if not path.exists():
        with h5py.File(source) as read, _replacing(path) as write:
            _rewrite(read, write, lambda _, item: (len(item), item.dtype, _pieces(item)), gzip=True)
    return path


def repeated(source: Path, factor: int) -> Path:
    """Return a screen of the rows of `source` `factor` times over, each cell with a name of its own."""
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
        return len(item), item.dtype, _pieces(item)
    if last == "indptr":
        dtype = np.dtype(np.int32 if nnz * factor < 2**31 else np.int64)
        later = (piece + np.int64(nnz) * copy for copy in range(factor) for piece in _pieces(item, 1))
        return (len(item) - 1) * factor + 1, dtype, _chain(np.zeros(1, dtype), later)
    copies: Iterator[np.ndarray] = (_renamed(piece, k, last) for k in range(factor) for piece in _pieces(item))
    return len(item) * factor, item.dtype, copies


def _renamed(piece: np.ndarray, copy: int, column: str) -> np.ndarray:
    if column != "_index" or copy == 0:
        return piece
    return np.array([f"{name.decode()}-{copy}" for name in piece], dtype=object)


def _chain(first: np.ndarray, rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    yield first
    yield from rest


def _pieces(item: h5py.Dataset, start: int = 0) -> Iterator[np.ndarray]:
    step = STRINGS if item.dtype == object else NUMBERS
    for at in range(start, len(item), step):
        yield item[at : min(at + step, len(item))]


def _rewrite(
    source: h5py.Group, target: h5py.Group, content: Callable[[str, h5py.Dataset], Content], *, gzip: bool = False
) -> None:
    """Copy a group with its attributes, where `content` says what becomes of each dataset."""
    target.attrs.update(source.attrs)
    for name, item in source.items():
        if isinstance(item, h5py.Group):
            _rewrite(item, target.create_group(name), content, gzip=gzip)
            continue
        length, dtype, pieces = content(item.name, item)
        shape = (length, *item.shape[1:])
        options: dict[str, Any] = {"chunks": item.chunks, "maxshape": (None, *item.shape[1:]) if item.chunks else None}
        if gzip:
            options |= {"chunks": item.chunks or True, "compression": "gzip", "compression_opts": GZIP_LEVEL}
        made = target.create_dataset(name, shape, dtype, **options)
        at = 0
        for piece in pieces:
            made[at : at + len(piece)] = piece
            at += len(piece)
        made.attrs.update(item.attrs)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[h5py.File]:
    """Open a new file that takes its name when it is complete, so that a name can be trusted."""
    partial = path.with_suffix(".partial")
    try:
        with h5py.File(partial, "w") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
