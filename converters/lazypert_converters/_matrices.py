"""Matrices of a tree, CSR, CSC or dense: their checks, how they are cut into pieces, and the pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert.converter import BlockSpec, CSRBlock, RowBlock, first_bad_index
from lazypert_converters._sparse import blocks_by_nnz, indptr_fault
from lazypert_converters._tree import Array, Group, join

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert_converters._tree import Tree

_INDEX_BYTES = 4  # of a column number in a block made from a dense matrix
_SLAB = 1 << 18  # elements of a dense piece that are looked at together
_LARGEST = 2**63 - 1
_DENSE = {("", ""), ("array", "0.2.0")}


@dataclass(frozen=True)
class Matrix:
    """Where a matrix is and how it is laid out: ``"csr"``, ``"csc"`` or ``"dense"``.

    Attributes
    ----------
    where
        Path of the array, or of the group of ``data``, ``indices`` and ``indptr``.
    """

    where: str
    layout: str
    n_rows: int
    n_cols: int


def sparse_layout(node: Array | Group) -> str | None:
    """``"csr"``, ``"csc"``, or None when a node is no sparse matrix."""
    if not isinstance(node, Group):
        return None
    kind, version = node.encoding
    if not kind:
        kind, version = str(node.attribute("h5sparse_format", "")), "0.1.0"  # AnnData before 0.7
    layout = kind.removesuffix("_matrix")
    return layout if layout in ("csr", "csc") and version == "0.1.0" else None


def sparse_shape(node: Group) -> tuple[int, int]:
    """Rows and columns that a sparse matrix says it has."""
    shape = node.attribute("shape", node.attribute("h5sparse_shape"))
    if not (isinstance(shape, list) and len(shape) == 2 and all(isinstance(n, int) and n >= 0 for n in shape)):
        raise node.fault(f"has {shape!r} as its shape", "two numbers: rows and columns")
    return shape[0], shape[1]


def open_matrix(node: Array | Group, shape: tuple[int, int]) -> Matrix:
    """Check a matrix's structure and lengths; no values are read.

    Raises
    ------
    SourceFormatError
        When it is of another encoding, dtype or shape.
    """
    if isinstance(node, Array):
        return _open_dense(node, shape)
    layout = sparse_layout(node)
    if layout is None:
        kind = " ".join(node.encoding).strip() or "a group without an encoding"
        raise node.fault(f"is encoded as {kind!r}", "csr_matrix or csc_matrix of version 0.1.0, or an array")
    if (found := sparse_shape(node)) != shape:
        raise node.fault(f"is of shape {found}", f"{shape} from the lengths of obs and var")
    return open_sparse(node, layout, shape)


def open_sparse(node: Group, layout: str, shape: tuple[int, int]) -> Matrix:
    """Check the three arrays of a sparse matrix."""
    data, indices, indptr = (node.array(part).vector() for part in ("data", "indices", "indptr"))
    if data.kind != "number":
        raise data.fault(f"is of dtype {data.dtype}", "numbers of at most 64 bits")
    for part in (indices, indptr):
        if part.kind != "number" or part.dtype.kind not in "iu":
            raise part.fault(f"is of dtype {part.dtype}", "integers")
    if data.shape != indices.shape:
        raise indices.fault(f"has {indices.shape[0]:,} elements", f"{data.shape[0]:,}, as many as data")
    return Matrix(node.where, layout, *shape)


def _open_dense(node: Array, shape: tuple[int, int]) -> Matrix:
    if node.encoding not in _DENSE or node.kind != "number":
        kind = node.encoding[0] or "array"
        raise node.fault(f"is encoded as {kind!r} of dtype {node.dtype}", "numbers of at most 64 bits")
    if node.shape != shape:
        raise node.fault(f"is an array of shape {node.shape}", f"{shape} from the lengths of obs and var")
    return Matrix(node.where, "dense", *shape)


def blocks(tree: Tree, name: str, matrix: Matrix, max_bytes: int) -> list[BlockSpec]:
    """Cut a matrix into pieces of at most `max_bytes`: rows of CSR, columns of CSC, tiles of a dense matrix.

    A tile is numbered by its first element and the one after its last, counted row by row.
    """
    with tree.root() as root:
        if matrix.layout == "dense":
            array = root.array(matrix.where)
            size = array.dtype.itemsize + _INDEX_BYTES  # as CSR, with nothing zero
            shape = (matrix.n_rows, matrix.n_cols)
            cuts = tiles(shape, array.chunks, max(1, max_bytes // size))
            return [BlockSpec(name, r0 * shape[1] + c0, (r1 - 1) * shape[1] + c1) for r0, r1, c0, c1 in cuts]
        group = root.group(matrix.where)
        data, indices, indptr = (group.array(part) for part in ("data", "indices", "indptr"))
        pointers = indptr.read()
        if pointers.dtype.kind == "u" and pointers.size and int(pointers.max()) > _LARGEST:
            raise indptr.fault(f"holds {int(pointers.max())}", "numbers below 2^63")
        pointers = pointers.astype(np.int64)
        major = matrix.n_rows if matrix.layout == "csr" else matrix.n_cols
        fault = indptr_fault(pointers, major, data.shape[0])
        if fault is not None:
            raise indptr.fault(*fault)
        _check_written(data, indices, pointers)
        size = data.dtype.itemsize + indices.dtype.itemsize
    return blocks_by_nnz(name, pointers, max(1, max_bytes // size))


def tiles(shape: tuple[int, int], chunks: tuple[int, ...] | None, limit: int) -> list[tuple[int, int, int, int]]:
    """Cut a dense matrix into tiles of at most `limit` elements, each of whole chunks where one fits.

    Parameters
    ----------
    shape
        Rows and columns.
    chunks
        Shape of a chunk; None for values that lie in the file row by row.

    Returns
    -------
    First row, row after the last, first column, column after the last of each; row bands from top to
    bottom and inside a band from left to right, so that the pieces of a row come in column order. A chunk
    larger than the limit is cut into rows, and read as often.
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


def _check_written(data: Array, indices: Array, indptr: NDArray[np.int64]) -> None:
    """Chunks that are not there read as zeros, which sparse matrices have no reason to hold."""
    for start, stop in data.missing():
        raise data.fault(
            f"was never written from element {start:,} to {stop:,}",
            "all of its values",
            "Zeros would be shown in their place. If they are zeros, remove them: adata.X.eliminate_zeros().",
        )
    for start, stop in indices.missing():
        # Column 0 may be all there is, but only once a row.
        if np.diff(np.clip(indptr, start, stop)).max(initial=0) > 1:
            raise indices.fault(
                f"was never written from element {start:,} to {stop:,}",
                "all of its values",
                "Zeros would be shown in their place. Get the file again.",
            )


def read_block(tree: Tree, matrix: Matrix, spec: BlockSpec) -> RowBlock:
    """Read and check one piece of a matrix."""
    with tree.root() as root:
        if matrix.layout == "dense":
            return _read_tile(root.array(matrix.where), matrix, spec)
        return _read_sparse(root.group(matrix.where), matrix, spec)


def stored_values(tree: Tree, matrix: Matrix) -> int | None:
    """Number of stored values of a sparse matrix; None of a dense one, where only reading it would tell."""
    if matrix.layout == "dense":
        return None
    with tree.root() as root:
        return int(root.array(join(matrix.where, "data")).shape[0])


def scratch_bytes(tree: Tree, matrix: Matrix) -> int:
    """Bytes that `read_block` needs beside the block."""
    with tree.root() as root:
        if matrix.layout == "dense":
            array = root.array(matrix.where)
            return array.scratch_bytes + _SLAB * (array.dtype.itemsize + 9)
        parts = [root.array(join(matrix.where, part)) for part in ("data", "indices", "indptr")]
    largest = max(part.scratch_bytes for part in parts)
    # Columns become rows with one more set of pointers to all rows: SciPy's, its copy, and the block's.
    return largest if matrix.layout == "csr" else largest + 3 * 8 * (matrix.n_rows + 1)


def _read_tile(array: Array, matrix: Matrix, spec: BlockSpec) -> RowBlock:
    top, left = divmod(spec.start, matrix.n_cols)
    bottom, right = divmod(spec.stop - 1, matrix.n_cols)
    values = _for_kernels(array.tile(slice(top, bottom + 1), slice(left, right + 1)))
    _check_size(array, values)
    return RowBlock(top, _to_csr(values, left, matrix.n_cols))


def _to_csr(values: NDArray[Any], first_col: int, n_cols: int) -> CSRBlock:
    lengths = np.count_nonzero(values, axis=1)
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    indices, data = np.empty(int(indptr[-1]), np.int32), np.empty(int(indptr[-1]), values.dtype)
    step = max(1, _SLAB // values.shape[1])
    for row in range(0, len(values), step):
        slab = values[row : row + step]
        here = slice(indptr[row], indptr[row + len(slab)])
        filled = slab != 0
        indices[here] = np.nonzero(filled)[1] + first_col
        data[here] = slab[filled]
    return CSRBlock(indptr, indices, data, n_cols)


def _read_sparse(group: Group, matrix: Matrix, spec: BlockSpec) -> RowBlock:
    data, indices = group.array("data"), group.array("indices")
    indptr = group.array("indptr").read(spec.start, spec.stop + 1).astype(np.int64)
    first, last = int(indptr[0]), int(indptr[-1])
    columns, values = indices.read(first, last), _for_kernels(data.read(first, last))
    if not len(columns) == len(values) == last - first:
        raise group.fault(f"ends before element {last:,}", "as many values as indptr says")
    _check_size(data, values)
    minor = matrix.n_cols if matrix.layout == "csr" else matrix.n_rows
    bad = first_bad_index(columns, minor)
    if bad >= 0:
        raise indices.fault(f"holds {int(columns[bad])} at element {first + bad}", f"numbers from 0 to {minor - 1}")
    if minor <= 2**31:
        columns = columns.astype(np.int32, copy=False)
    if matrix.layout == "csr":
        return RowBlock(spec.start, CSRBlock(indptr - first, columns, values, matrix.n_cols))
    return RowBlock(0, _columns_to_rows(indptr - first, columns, values, spec.start, matrix))


def _columns_to_rows(
    indptr: NDArray[np.int64], indices: NDArray[Any], data: NDArray[Any], first_col: int, matrix: Matrix
) -> CSRBlock:
    """Columns ``first_col`` on, as rows of the whole matrix (columns keep their numbers)."""
    from scipy.sparse import csc_array

    rows = csc_array((data, indices, indptr), shape=(matrix.n_rows, len(indptr) - 1)).tocsr()
    columns = (rows.indices + first_col).astype(np.int32)
    return CSRBlock(rows.indptr.astype(np.int64), columns, rows.data, matrix.n_cols)


def _for_kernels(values: NDArray[Any]) -> NDArray[Any]:
    """Half floats, which no kernel takes, as floats."""
    return values.astype(np.float32) if values.dtype == np.float16 else values


def _check_size(array: Array, values: NDArray[Any]) -> None:
    if values.dtype == np.uint64 and values.size and int(values.max()) > _LARGEST:
        raise array.fault(
            f"holds {int(values.max())}",
            f"integers of at most {_LARGEST}",
            "No dtype of a store holds it, and no count is that large: check the file.",
        )
