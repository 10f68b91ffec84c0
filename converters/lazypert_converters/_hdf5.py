"""What readers of HDF5 files share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SIGNATURE = b"\x89HDF\r\n\x1a\n"


def is_hdf5(path: Path) -> bool:
    """Whether the file begins as HDF5 does; says nothing about the rest of it."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(SIGNATURE)) == SIGNATURE


def native(values: NDArray[Any]) -> NDArray[Any]:
    """Values in this machine's byte order; half floats, which no kernel takes, as floats."""
    dtype = np.dtype("f4") if values.dtype == np.float16 else values.dtype.newbyteorder("=")
    return values.astype(dtype, copy=False)


def missing_source(path: Path, node: Any) -> Path | None:
    """File behind a virtual dataset that is not there; HDF5 would show zeros in its place."""
    for source in node.virtual_sources() if node.is_virtual else ():
        file = path if source.file_name == "." else path.parent / source.file_name
        if not file.is_file():
            return file
    return None
