"""CSR, CSC and dense matrices of a tree: check them, cut them into source blocks, and read the blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from lazypert.converter import BlockSpec, CSRBlock, RowBlock, first_bad_index
from lazypert_converters._row_pointers import (
    blocks_of_parts,
    length_fault,
    part_fault,
    read_in_parts,
    row_pointers,
)
from lazypert_converters._tree import Array, Group, join

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lazypert.errors import SourceFormatError
    from lazypert_converters._tree import Tree

SparseLayout = Literal["csr", "csc"]

ARRAYS = ("data", "indices", "indptr")  # of a sparse matrix
_INDEX_BYTES = 4  # of a column number in a block made from a dense matrix
_SLAB = 1 << 18  # elements of a dense tile that are compressed at once
_MAX_INTEGER = 2**63 - 1
_DENSE_ENCODINGS = {("", ""), ("array", "0.2.0")}
_ONLY_NUMBERS = "numbers of at most 64 bits"


@dataclass(frozen=True)
class Matrix:
    """Where a matrix is in the file, and its layout.

    Attributes
    ----------
    where
        Path of the array, or of the group that holds ``data``, ``indices`` and ``indptr``.
    """

    where: str
    layout: Literal["csr", "csc", "dense"]
    n_rows: int
    n_cols: int


def sparse_layout(node: Array | Group) -> SparseLayout | None:
    """``"csr"`` or ``"csc"``; None if a node is not a sparse matrix."""
    if not isinstance(node, Group):
        return None
    encoding_type, version = node.encoding
    if not encoding_type:
        encoding_type, version = str(node.attribute("h5sparse_format", "")), "0.1.0"  # AnnData before 0.7
    layout = encoding_type.removesuffix("_matrix")
    return cast("SparseLayout", layout) if layout in ("csr", "csc") and version == "0.1.0" else None


def sparse_shape(node: Group) -> tuple[int, int]:
    """Rows and columns that a sparse matrix declares."""
    shape = node.attribute("shape", node.attribute("h5sparse_shape"))
    if not (isinstance(shape, list) and len(shape) == 2 and all(isinstance(n, int) and n >= 0 for n in shape)):
        raise node.fault(f"has {shape!r} as its shape", "two numbers: rows and columns")
    return shape[0], shape[1]


def is_dense_matrix(node: Array) -> bool:
    """Whether an array holds numbers in an encoding of dense matrices."""
    return node.kind == "number" and node.encoding in _DENSE_ENCODINGS


def open_matrix(node: Array | Group, shape: tuple[int, int]) -> Matrix:
    """Check a matrix's structure and lengths without reading its values.

    Raises
    ------
    SourceFormatError
        If its encoding or dtype is not supported, or its shape is not `shape`.
    """
    if isinstance(node, Array):
        return _open_dense(node, shape)
    layout = sparse_layout(node)
    if layout is None:
        encoding = " ".join(node.encoding).strip() or "a group without an encoding"
        raise node.fault(f"is encoded as {encoding!r}", "csr_matrix or csc_matrix of version 0.1.0, or an array")
    if (declared := sparse_shape(node)) != shape:
        raise node.fault(f"is a matrix of shape {declared}", f"{shape}, the lengths of obs and var")
    return open_sparse(node, layout, shape)


def open_sparse(node: Group, layout: SparseLayout, shape: tuple[int, int]) -> Matrix:
    """Check the three arrays of a sparse matrix."""
    data, indices, indptr = (node.array(name).vector() for name in ARRAYS)
    if data.kind != "number":
        raise data.fault(f"is of dtype {data.dtype}", _ONLY_NUMBERS)
    for array in (indices, indptr):
        if array.kind != "number" or array.dtype.kind not in "iu":
            raise array.fault(f"is of dtype {array.dtype}", "integers")
    if data.shape != indices.shape:
        raise indices.fault(f"has {indices.shape[0]:,} elements", f"{data.shape[0]:,}, as many as data")
    return Matrix(node.where, layout, *shape)


def _open_dense(node: Array, shape: tuple[int, int]) -> Matrix:
    if not is_dense_matrix(node):
        raise node.fault(f"is encoded as {node.encoding[0] or 'array'!r} of dtype {node.dtype}", _ONLY_NUMBERS)
    if node.shape != shape:
        raise node.fault(f"is an array of shape {node.shape}", f"{shape}, the lengths of obs and var")
    return Matrix(node.where, "dense", *shape)


def blocks(tree: Tree, name: str, matrix: Matrix, max_bytes: int) -> list[BlockSpec]:
    """Cut a matrix into source blocks of at most `max_bytes`.

    They are row ranges of a CSR matrix, column ranges of a CSC matrix, and tiles of a dense one. A tile
    starts at its first element and stops after its last, with elements counted row by row.
    """
    with tree.root() as root:
        if matrix.layout == "dense":
            array = root.array(matrix.where)
            value_bytes = array.dtype.itemsize + _INDEX_BYTES  # as CSR without any zeros
            shape = (matrix.n_rows, matrix.n_cols)
            bounds = tiles(shape, array.chunks, max(1, max_bytes // value_bytes))
            return [BlockSpec(name, r0 * shape[1] + c0, (r1 - 1) * shape[1] + c1) for r0, r1, c0, c1 in bounds]
        group = root.group(matrix.where)
        data, indices, indptr = (group.array(array_name) for array_name in ARRAYS)
        n_major = matrix.n_rows if matrix.layout == "csr" else matrix.n_cols
        if (fault := length_fault(indptr.shape[0], n_major)) is not None:
            raise indptr.fault(*fault)
        _check_written(data, indices, indptr)
        value_bytes = data.dtype.itemsize + indices.dtype.itemsize
        parts = _checked_pointers(indptr, n_major, data.shape[0])
        return blocks_of_parts(name, parts, max(1, max_bytes // value_bytes))


def _checked_pointers(indptr: Array, n_rows: int, nnz: int) -> Iterator[NDArray[np.int64]]:
    """Yield row pointers in parts, as `read_in_parts` does, after checking them."""
    first = 0
    for pointers in read_in_parts(indptr.read, n_rows + 1):
        if pointers.dtype.kind == "u" and pointers.size and int(pointers.max()) > _MAX_INTEGER:
            raise indptr.fault(f"holds {int(pointers.max())}", "numbers below 2^63")
        if (fault := part_fault(pointers, first, n_rows, nnz)) is not None:
            raise indptr.fault(*fault)
        yield pointers.astype(np.int64)
        first += len(pointers) - 1


def tiles(shape: tuple[int, int], chunks: tuple[int, ...] | None, limit: int) -> list[tuple[int, int, int, int]]:
    """Cut a dense matrix into tiles of at most `limit` elements, made of complete chunks if one fits.

    Parameters
    ----------
    shape
        Rows and columns.
    chunks
        Shape of a chunk; None for values that are stored contiguously, row by row.

    Returns
    -------
    (first row, row stop, first column, column stop) of each tile. Row bands come from top to bottom, and the
    tiles of a band from left to right, so that the values of a row come in column order. A chunk larger
    than the limit is cut into rows and read once for each of them.
    """
    n_rows, n_cols = shape
    if not n_rows or not n_cols:
        return []
    rows, cols = (1, n_cols) if chunks is None else (min(chunks[0], n_rows), min(chunks[1], n_cols))
    if rows * n_cols <= limit:
        height, width = rows * (limit // (rows * n_cols)), n_cols
    elif rows * cols <= limit:
        height, width = rows, cols * (limit // (rows * cols))
    else:
        height, width = max(1, limit // cols), cols
    band = max(rows, height)
    return [
        (r, min(r + height, top + band, n_rows), c, min(c + width, n_cols))
        for top in range(0, n_rows, band)
        for r in range(top, min(top + band, n_rows), height)
        for c in range(0, n_cols, width)
    ]


def _check_written(data: Array, indices: Array, indptr: Array) -> None:
    """Refuse unwritten chunks of a sparse matrix: they read as zeros, which such a matrix need not store."""
    for start, stop in data.unwritten():
        advice = "If they really are zeros, remove them: adata.X.eliminate_zeros()."
        raise _unwritten_fault(data, start, stop, advice)
    for start, stop in indices.unwritten():
        # Column 0 may be stored on its own, but at most once per row.
        parts = read_in_parts(indptr.read, indptr.shape[0])
        if any(np.diff(np.clip(pointers, start, stop)).max(initial=0) > 1 for pointers in parts):
            raise _unwritten_fault(indices, start, stop, "Get the file again.")


def _unwritten_fault(array: Array, start: int, stop: int, advice: str) -> SourceFormatError:
    return array.fault(
        f"was never written from element {start:,} to {stop:,}",
        "all of its values",
        f"Zeros would be shown in their place. {advice}",
    )


def read_block(tree: Tree, matrix: Matrix, spec: BlockSpec) -> RowBlock:
    """Read and check one source block."""
    with tree.root() as root:
        if matrix.layout == "dense":
            return _read_tile(root.array(matrix.where), matrix, spec)
        return _read_sparse(root.group(matrix.where), matrix, spec)


def stored_values(tree: Tree, matrix: Matrix) -> int | None:
    """Number of stored values of a sparse matrix; None for a dense one, which would have to be read."""
    if matrix.layout == "dense":
        return None
    with tree.root() as root:
        return int(root.array(join(matrix.where, "data")).shape[0])


def scratch_bytes(tree: Tree, matrix: Matrix) -> int:
    """Bytes that `read_block` needs in addition to the block."""
    with tree.root() as root:
        if matrix.layout == "dense":
            array = root.array(matrix.where)
            return array.scratch_bytes + _SLAB * (array.dtype.itemsize + 9)
        largest = max(root.array(join(matrix.where, name)).scratch_bytes for name in ARRAYS)
    # Transposing columns takes three more sets of row pointers: SciPy's, its copy, and the block's.
    return largest if matrix.layout == "csr" else largest + 3 * 8 * (matrix.n_rows + 1)


def _read_tile(array: Array, matrix: Matrix, spec: BlockSpec) -> RowBlock:
    top, left = divmod(spec.start, matrix.n_cols)
    bottom, right = divmod(spec.stop - 1, matrix.n_cols)
    values = widened(array.tile(slice(top, bottom + 1), slice(left, right + 1)))
    _check_integers(array, values)
    return RowBlock(top, to_csr(values, left, matrix.n_cols))


def to_csr(values: NDArray[Any], first_col: int, n_cols: int) -> CSRBlock:
    """Keep the non-zero values of a dense tile whose first column is `first_col`."""
    indptr = row_pointers(np.count_nonzero(values, axis=1))
    indices, data = np.empty(int(indptr[-1]), np.int32), np.empty(int(indptr[-1]), values.dtype)
    step = max(1, _SLAB // values.shape[1])
    for row in range(0, len(values), step):
        slab = values[row : row + step]
        span = slice(indptr[row], indptr[row + len(slab)])
        is_stored = slab != 0
        indices[span] = np.nonzero(is_stored)[1] + first_col
        data[span] = slab[is_stored]
    return CSRBlock(indptr, indices, data, n_cols)


def _read_sparse(group: Group, matrix: Matrix, spec: BlockSpec) -> RowBlock:
    data, indices = group.array("data"), group.array("indices")
    indptr = group.array("indptr").read(spec.start, spec.stop + 1).astype(np.int64)
    first, last = int(indptr[0]), int(indptr[-1])
    columns, values = indices.read(first, last), widened(data.read(first, last))
    if not len(columns) == len(values) == last - first:
        raise group.fault(f"ends before element {last:,}", "as many values as indptr says")
    _check_integers(data, values)
    n_minor = matrix.n_cols if matrix.layout == "csr" else matrix.n_rows
    bad = first_bad_index(columns, n_minor)
    if bad >= 0:
        raise indices.fault(f"holds {int(columns[bad])} at element {first + bad}", f"numbers from 0 to {n_minor - 1}")
    if n_minor <= 2**31:
        columns = columns.astype(np.int32, copy=False)
    if matrix.layout == "csr":
        return RowBlock(spec.start, CSRBlock(indptr - first, columns, values, matrix.n_cols))
    return RowBlock(0, _columns_to_rows(indptr - first, columns, values, spec.start, matrix))


def _columns_to_rows(
    indptr: NDArray[np.int64], indices: NDArray[Any], data: NDArray[Any], first_col: int, matrix: Matrix
) -> CSRBlock:
    """Convert consecutive columns, the first of them `first_col`, to rows of the complete matrix."""
    from scipy.sparse import csc_array

    rows = csc_array((data, indices, indptr), shape=(matrix.n_rows, len(indptr) - 1)).tocsr()
    columns = (rows.indices + first_col).astype(np.int32)
    return CSRBlock(rows.indptr.astype(np.int64), columns, rows.data, matrix.n_cols)


def widened(values: NDArray[Any]) -> NDArray[Any]:
    """Convert float16, which kernels do not support, to float32."""
    return values.astype(np.float32) if values.dtype == np.float16 else values


def _check_integers(array: Array, values: NDArray[Any]) -> None:
    if values.dtype == np.uint64 and values.size and int(values.max()) > _MAX_INTEGER:
        raise array.fault(
            f"holds {int(values.max())}",
            f"integers of at most {_MAX_INTEGER}",
            "No dtype of a store can represent it, and no count is that large: check the file.",
        )
