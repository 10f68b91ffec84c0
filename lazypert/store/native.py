"""C functions of the codec libraries and of the system, called from kernels, where no GIL is held.

numcodecs and google-crc32c hold the GIL for the better part of each call, and a read gives it back and
takes it again: that is what limits many threads that decode small chunks. Shared libraries export what
they call; numba can call it by address. Where a build hides these symbols, `FUNCTIONS` is None and
chunks are read and decoded through Python interfaces instead: slower, with the same results.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numcodecs import blosc

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Functions:
    """Addresses of the functions that reading and decoding need.

    They are arguments of kernels, never constants in them: compiled kernels are cached on disk, and
    addresses change from process to process.
    """

    pread: np.uintp
    crc32c: np.uintp
    blosc_decompress: np.uintp
    blosc_getitem: np.uintp


def _foreign(result: Any, *parameters: Any) -> Callable[..., Any]:
    """Make an intrinsic ``call(address, (argument, ...))`` of a C function of this signature."""

    @intrinsic  # type: ignore[untyped-decorator]
    def call(typing_context: Any, address: Any, arguments: Any) -> Any:  # noqa: ARG001
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:  # noqa: ARG001
            kind = ir.FunctionType(
                context.get_value_type(result), [context.get_value_type(kind) for kind in parameters]
            )
            given = [
                context.cast(builder, value, have, want)
                for value, have, want in zip(
                    cgutils.unpack_tuple(builder, values[1]), arguments.types, parameters, strict=True
                )
            ]
            return builder.call(builder.inttoptr(values[0], kind.as_pointer()), given)

        return result(types.uintp, arguments), generate

    return call


call_pread = _foreign(types.int64, types.int32, types.uintp, types.uint64, types.int64)
"""Read ``(file descriptor, into, n_bytes, offset)``; bytes read, 0 at the end of the file, or -1."""

call_crc32c = _foreign(types.uint32, types.uintp, types.uintp)
"""CRC-32C of ``(address, n_bytes)``."""

call_blosc_decompress = _foreign(types.int32, types.uintp, types.uintp, types.uintp, types.int32)
"""Decode ``(chunk, into, n_bytes, n_threads)``; the number of bytes written, or less than 1."""

call_blosc_getitem = _foreign(types.int32, types.uintp, types.int32, types.int32, types.uintp)
"""Decode ``(chunk, first, n_items, into)``, only the blocks that hold them; bytes, or less than 1."""


def _find() -> Functions | None:
    """Look the functions up, and try them on a chunk of known content."""
    try:
        from google_crc32c import _crc32c

        # A symbol is looked for in a library and in those that it was linked with.
        checksums, codecs = ctypes.CDLL(_crc32c.__file__), ctypes.CDLL(blosc.__file__)
        pread = ctypes.CDLL(None).pread
        crc32c, decompress, getitem = checksums.crc32c_value, codecs.blosc_decompress_ctx, codecs.blosc_getitem
    except (ImportError, OSError, AttributeError):
        return None
    # With 64-bit offsets, as everywhere where Python is 64-bit.
    pread.restype, pread.argtypes = ctypes.c_int64, [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int64]
    crc32c.restype, crc32c.argtypes = ctypes.c_uint32, [ctypes.c_char_p, ctypes.c_size_t]
    decompress.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    getitem.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    values, whole, part = np.arange(64, dtype="u2"), np.zeros(64, "u2"), np.zeros(3, "u2")
    chunk = blosc.compress(values, b"lz4", 5, blosc.SHUFFLE, 0)
    works = (
        crc32c(chunk, len(chunk)) == google_crc32c.value(chunk)
        and decompress(chunk, whole.ctypes.data, whole.nbytes, 1) == whole.nbytes
        and getitem(chunk, 5, 3, part.ctypes.data) == part.nbytes
        and (whole == values).all()
        and (part == values[5:8]).all()
        and _reads(pread, _crc32c.__file__)
    )
    if not works:
        return None
    address = [
        np.uintp(ctypes.cast(function, ctypes.c_void_p).value or 0) for function in (pread, crc32c, decompress, getitem)
    ]
    return Functions(*address)


def _reads(pread: Any, path: str) -> bool:
    found = ctypes.create_string_buffer(8)
    with Path(path).open("rb") as file:
        return bool(pread(file.fileno(), found, 8, 3) == 8 and found.raw == os.pread(file.fileno(), 8, 3))


def describe() -> dict[str, str]:
    """Say for each C function whether it was found."""
    status = "found" if FUNCTIONS is not None else "missing"
    return dict.fromkeys(("pread", "crc32c_value", "blosc_decompress_ctx", "blosc_getitem"), status)


FUNCTIONS = _find()
"""The functions, or None where they cannot be called."""
