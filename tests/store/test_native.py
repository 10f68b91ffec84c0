"""C functions are called by address only where they do what they should."""

import ctypes

import google_crc32c
import numpy as np
import pytest
from numcodecs import blosc

from lazypert._internal.kernels import kernel
from lazypert.store import native
from lazypert.store.native import call_blosc_decompress, call_blosc_getitem, call_crc32c, call_pread

FUNCTIONS = native.FUNCTIONS
needs_functions = pytest.mark.skipif(FUNCTIONS is None, reason="this build hides the codecs' functions")


@kernel
def checksum(function, data):
    return call_crc32c(function, (data.ctypes.data, len(data)))


@kernel
def decompress(function, chunk, out):
    return call_blosc_decompress(function, (chunk.ctypes.data, out.ctypes.data, out.nbytes, 1))


@kernel
def getitem(function, chunk, start, out):
    return call_blosc_getitem(function, (chunk.ctypes.data, start, len(out), out.ctypes.data))


@kernel
def pread(function, file, out, offset):
    return call_pread(function, (file, out.ctypes.data, len(out), offset))


@needs_functions
class TestCalls:
    @pytest.mark.parametrize("length", [0, 1, 7, 8, 1000])
    def test_checksums(self, length):
        data = np.random.default_rng(length).integers(0, 256, length).astype(np.uint8)
        assert checksum(FUNCTIONS.crc32c, data) == google_crc32c.value(data.tobytes())

    @pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "f8"])
    def test_codecs(self, dtype):
        values = np.arange(5000).astype(dtype)
        chunk = np.frombuffer(blosc.compress(values, b"lz4", 5, blosc.SHUFFLE, 0), np.uint8)
        out, part = np.zeros_like(values), np.zeros(100, dtype)
        assert decompress(FUNCTIONS.blosc_decompress, chunk, out) == values.nbytes
        np.testing.assert_array_equal(out, values)
        assert getitem(FUNCTIONS.blosc_getitem, chunk, 1234, part) == part.nbytes
        np.testing.assert_array_equal(part, values[1234:1334])
        assert decompress(FUNCTIONS.blosc_decompress, chunk, out[:10]) <= 0  # there is no room for it

    def test_files(self, tmp_path):
        (tmp_path / "file").write_bytes(bytes(range(100)))
        out = np.zeros(10, np.uint8)
        with (tmp_path / "file").open("rb") as file:
            assert pread(FUNCTIONS.pread, file.fileno(), out, 95) == 5
            assert out.tolist() == [95, 96, 97, 98, 99, 0, 0, 0, 0, 0]
            assert pread(FUNCTIONS.pread, file.fileno(), out, 100) == 0
            assert file.tell() == 0
        assert pread(FUNCTIONS.pread, -1, out, 0) == -1


@pytest.mark.parametrize("lacking", ["crc32c_value", "blosc_decompress_ctx", "blosc_getitem", "pread"])
def test_a_build_that_hides_a_function_has_none(lacking, monkeypatch):
    real = ctypes.CDLL

    class Hiding:
        def __init__(self, name):
            self._library = real(name)

        def __getattr__(self, name):
            if name == lacking:
                raise AttributeError(name)
            return getattr(self._library, name)

    monkeypatch.setattr(ctypes, "CDLL", Hiding)
    assert native._find() is None


def test_functions_that_do_something_else_are_not_used(monkeypatch):
    monkeypatch.setattr(google_crc32c, "value", lambda _: 0)
    assert native._find() is None
