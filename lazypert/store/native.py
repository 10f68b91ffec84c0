"""C functions of the codec libraries and the system, callable from kernels without the GIL.

numcodecs and google-crc32c hold the GIL during most of a call, and reading a file releases and reacquires
it, which limits threads that decode many small chunks. Their shared libraries export the underlying C
functions, and Numba can call these by address. If a build hides them, `FUNCTIONS` is None and chunks
are read and decoded through Python interfaces, which is slower but gives the same results.
"""

from __future__ import annotations

import ctypes
import os
import warnings
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

from lazypert._internal.fork import forkable_lock

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Functions:
    """Addresses of the C functions.

    They are arguments of kernels, never constants in them: compiled kernels are cached on disk, and
    addresses differ between processes.
    """

    pread: np.uintp
    crc32c: np.uintp
    blosc_decompress: np.uintp
    blosc_getitem: np.uintp


def _c_function(result: Any, *parameters: Any) -> Callable[..., Any]:
    """Make an intrinsic ``call(address, (argument, ...))`` for a C function of this signature."""

    @intrinsic  # type: ignore[untyped-decorator]
    def call(typing_context: Any, address: Any, arguments: Any) -> Any:  # noqa: ARG001
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:  # noqa: ARG001
            function_type = ir.FunctionType(
                context.get_value_type(result), [context.get_value_type(kind) for kind in parameters]
            )
            converted = [
                context.cast(builder, value, given, expected)
                for value, given, expected in zip(
                    cgutils.unpack_tuple(builder, values[1]), arguments.types, parameters, strict=True
                )
            ]
            return builder.call(builder.inttoptr(values[0], function_type.as_pointer()), converted)

        return result(types.uintp, arguments), generate

    return call


call_pread = _c_function(types.int64, types.int32, types.uintp, types.uint64, types.int64)
"""Read ``(file descriptor, target, n_bytes, offset)``: number of bytes read, 0 at the end of the file, or -1."""

call_crc32c = _c_function(types.uint32, types.uintp, types.uintp)
"""Compute the CRC-32C of ``(address, n_bytes)``."""

call_blosc_decompress = _c_function(types.int32, types.uintp, types.uintp, types.uintp, types.int32)
"""Decode ``(chunk, target, n_bytes, n_threads)``: number of bytes written, or less than 1 on failure."""

call_blosc_getitem = _c_function(types.int32, types.uintp, types.int32, types.int32, types.uintp)
"""Decode ``(chunk, first, n_items, target)`` and only the Blosc blocks that hold them; returns as above."""


def describe() -> dict[str, str]:
    """Report for each C function whether kernels can call it: ``"found"``, or why it cannot be used."""
    return dict(_STATUS)


def are_available() -> bool:
    """Whether kernels can call the C functions; warns once per process if they cannot."""
    global _has_warned
    if FUNCTIONS is not None:
        return True
    with _WARNING:
        is_first, _has_warned = not _has_warned, True
    if is_first:
        reasons = "; ".join(f"{name} is {status}" for name, status in _STATUS.items() if status != _FOUND)
        warnings.warn(
            f"lazypert loads stores more slowly here, with the same results: {reasons}. "
            "Install numcodecs and google-crc32c from their binary wheels to load at full speed.",
            RuntimeWarning,
            stacklevel=2,
        )
    return False


def addresses() -> tuple[np.uintp, ...]:
    """Addresses of the C functions, as kernels take them; there must be some, see `are_available`."""
    assert FUNCTIONS is not None
    return FUNCTIONS.pread, FUNCTIONS.crc32c, FUNCTIONS.blosc_decompress, FUNCTIONS.blosc_getitem


def never_split_blocks() -> None:
    """Let Blosc compress each of its blocks as one stream, in this process, from now on.

    Blosc by default splits the blocks of LZ4 by byte plane, and makes them 64 KiB or larger for that. Unsplit
    blocks may be small, so a reader decodes less that it does not need, and they encode and decode faster. Any
    Blosc reads both. If the library does not export the setting, blocks stay large.
    """
    set_split_mode = getattr(ctypes.CDLL(str(blosc.__file__)), "blosc_set_splitmode", None)
    if set_split_mode is not None:
        set_split_mode(2)  # BLOSC_NEVER_SPLIT


def _find() -> tuple[Functions | None, dict[str, str]]:
    """Look up every function and try it on known data: the functions if all work, and the status of each."""
    addresses, status = [], {}
    for name, (find_library, works) in _SOURCES.items():
        try:
            library = find_library()
            function = getattr(ctypes.CDLL(library), name)
        except (ImportError, OSError) as error:
            status[name] = f"missing (its library cannot be loaded: {error})"
            continue
        except AttributeError:
            status[name] = f"missing ({library or 'the C library'} does not export it)"
            continue
        status[name] = _FOUND if works(function) else f"unusable ({library or 'the C library'} has a different one)"
        addresses.append(np.uintp(ctypes.cast(function, ctypes.c_void_p).value or 0))
    all_work = all(text == _FOUND for text in status.values())
    return Functions(*addresses) if all_work else None, status


def _crc32c_library() -> str:
    from google_crc32c import _crc32c

    return str(_crc32c.__file__)


def _pread_works(pread: Any) -> bool:
    if not hasattr(os, "pread"):  # Windows
        return False
    # With 64-bit offsets, as on every 64-bit Python.
    pread.restype, pread.argtypes = ctypes.c_int64, [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int64]
    target = ctypes.create_string_buffer(8)
    with Path(blosc.__file__).open("rb") as file:
        return bool(pread(file.fileno(), target, 8, 3) == 8 and target.raw == os.pread(file.fileno(), 8, 3))


def _crc32c_works(crc32c: Any) -> bool:
    crc32c.restype, crc32c.argtypes = ctypes.c_uint32, [ctypes.c_char_p, ctypes.c_size_t]
    return bool(crc32c(_CHUNK, len(_CHUNK)) == google_crc32c.value(_CHUNK))


def _decompress_works(decompress: Any) -> bool:
    decompress.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    out = np.zeros_like(_VALUES)
    return bool(decompress(_CHUNK, out.ctypes.data, out.nbytes, 1) == out.nbytes and (out == _VALUES).all())


def _getitem_works(getitem: Any) -> bool:
    getitem.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    out = np.zeros(3, _VALUES.dtype)
    return bool(getitem(_CHUNK, 5, 3, out.ctypes.data) == out.nbytes and (out == _VALUES[5:8]).all())


_FOUND = "found"
_VALUES = np.arange(64, dtype="u2")
_CHUNK = blosc.compress(_VALUES, b"lz4", 5, blosc.SHUFFLE, 0)

# A symbol is looked up in a library and in those that it is linked with; None stands for the process itself.
# In the order of the fields of `Functions`.
_SOURCES: dict[str, tuple[Callable[[], str | None], Callable[[Any], bool]]] = {
    "pread": (lambda: None, _pread_works),
    "crc32c_value": (_crc32c_library, _crc32c_works),
    "blosc_decompress_ctx": (lambda: str(blosc.__file__), _decompress_works),
    "blosc_getitem": (lambda: str(blosc.__file__), _getitem_works),
}

FUNCTIONS, _STATUS = _find()

_WARNING = forkable_lock()
_has_warned = False
