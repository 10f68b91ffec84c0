"""C functions are called by address only where they work, and users hear of it where they do not."""

import subprocess
import sys
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from numcodecs import blosc

from lazypert._internal.kernels import kernel
from lazypert.store import native
from lazypert.store.native import call_blosc_decompress, call_blosc_getitem, call_crc32c, call_pread
from tests.support.native import hide_symbol
from tests.support.stores import converted

FUNCTIONS = native.FUNCTIONS
needs_functions = pytest.mark.skipif(FUNCTIONS is None, reason="this build hides the C functions")


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
        assert decompress(FUNCTIONS.blosc_decompress, chunk, out[:10]) <= 0  # the target is too small

    def test_files(self, tmp_path):
        (tmp_path / "file").write_bytes(bytes(range(100)))
        out = np.zeros(10, np.uint8)
        with (tmp_path / "file").open("rb") as file:
            assert pread(FUNCTIONS.pread, file.fileno(), out, 95) == 5
            assert out.tolist() == [95, 96, 97, 98, 99, 0, 0, 0, 0, 0]
            assert pread(FUNCTIONS.pread, file.fileno(), out, 100) == 0
            assert file.tell() == 0
        assert pread(FUNCTIONS.pread, -1, out, 0) == -1


SYMBOLS = ["pread", "crc32c_value", "blosc_decompress_ctx", "blosc_getitem"]


@needs_functions
def test_every_function_is_found():
    assert native.describe() == dict.fromkeys(SYMBOLS, "found")


@needs_functions
@pytest.mark.parametrize("symbol", SYMBOLS)
def test_a_build_that_hides_a_symbol_offers_no_functions(symbol, monkeypatch):
    hide_symbol(symbol, monkeypatch)
    functions, status = native._find()
    assert functions is None
    library = {"pread": "the C library", "crc32c_value": "_crc32c"}.get(symbol, "blosc")
    assert library in status[symbol]
    assert status[symbol].startswith("missing (")
    assert status[symbol].endswith("does not export it)")
    assert [name for name, text in status.items() if text == "found"] == [name for name in SYMBOLS if name != symbol]


@needs_functions
def test_functions_with_unexpected_results_are_not_used(monkeypatch):
    monkeypatch.setattr(google_crc32c, "value", lambda _: 0)
    functions, status = native._find()
    assert functions is None
    assert status["crc32c_value"].startswith("unusable (")


def test_without_a_c_extension_there_are_no_functions(monkeypatch):
    monkeypatch.setitem(sys.modules, "google_crc32c._crc32c", None)
    monkeypatch.delattr(google_crc32c, "_crc32c", raising=False)
    functions, status = native._find()
    assert functions is None
    assert "its library cannot be loaded" in status["crc32c_value"]


WITHOUT_A_SYMBOL = """
import sys, warnings
import numpy as np
import pytest
from tests.support.native import hide_symbol

hide_symbol(sys.argv[1], pytest.MonkeyPatch())
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import lazypert as lp
    from lazypert.store import native
    ours = [str(warning.message) for warning in caught if "lazypert" in str(warning.message)]
    assert ours == [], ours
    ds = lp.open(sys.argv[2])
    values = ds.X.values
    lp.open(sys.argv[2]).pert.select(controls=True).X.values
    ours = [warning for warning in caught if "lazypert" in str(warning.message)]
assert native.describe()[sys.argv[1]].startswith("missing"), native.describe()
np.save(sys.argv[3], values)
for warning in ours:
    print(warning.category.__name__, warning.message)
"""


@pytest.mark.slow
@pytest.mark.parametrize("symbol", ["blosc_decompress_ctx", "crc32c_value"])
def test_a_missing_symbol_warns_once_on_the_first_read_and_changes_no_result(tmp_path, symbol):
    import lazypert as lp

    _, store = converted(tmp_path)
    command = [sys.executable, "-c", WITHOUT_A_SYMBOL, symbol, str(store), str(tmp_path / "values.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = done.stdout.splitlines()
    assert line.startswith("RuntimeWarning lazypert loads stores more slowly here, with the same results: ")
    assert f"{symbol} is missing (" in line
    np.testing.assert_array_equal(np.load(tmp_path / "values.npy"), lp.open(store).X.values)
