import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lazypert
from lazypert._internal import kernels
from lazypert._internal.kernels import cache_directory, kernel
from lazypert._internal.randomness import counter_hash

RUN = """
import sys
import numpy as np
import lazypert as lp
from lazypert._internal.kernels import cache_directory
from lazypert._internal.randomness import counter_hash
assert lp.__file__.startswith(sys.argv[1]), lp.__file__
try:
    open(sys.argv[1] + "/file", "x")
except PermissionError:
    print("read-only")
print(cache_directory())
print(counter_hash((1, 2), np.arange(5)).tolist())
source = lp.PerturbationAnnDataSource(lp.PerturbationSourceConfig(file_path=sys.argv[2]))
print(source.batch(np.array([3, 700]))["counts"].sum())
"""


def double(x):
    return 2 * x


def test_kernels_are_compiled_and_cached():
    compiled = kernel(double)
    assert compiled(21) == 42
    assert compiled.targetoptions["nogil"]
    assert compiled.stats.cache_path == str(Path(__file__).parent / "__pycache__")
    assert cache_directory() == str(Path(kernels.__file__).parent / "__pycache__")


def test_kernels_work_without_a_cache(monkeypatch):
    def no_locator(*_):
        raise RuntimeError("cannot cache function 'double': no locator available for file 'test_kernels.py'")

    monkeypatch.setattr("numba.core.caching.FunctionCache", no_locator)
    monkeypatch.setattr("numba.core.dispatcher.FunctionCache", no_locator)
    assert kernel(double)(21) == 42
    assert cache_directory() is None


def unprivileged():
    """Return a command prefix under which permission bits hold for root, too."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root may write everywhere, and there is no setpriv to take that right away")
    return ["setpriv", "--bounding-set=-dac_override,-fowner", "--inh-caps=-dac_override,-fowner"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="takes rights away with setpriv")
def test_a_read_only_installation_without_a_home_works(tmp_path, reference):
    installation, home = tmp_path / "installation", tmp_path / "home"
    shutil.copytree(
        Path(lazypert.__file__).parent, installation / "lazypert", ignore=shutil.ignore_patterns("__pycache__")
    )
    home.mkdir()
    folders = [home, installation, *(path for path in installation.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR")
    }
    environment |= {"HOME": str(home), "PYTHONPATH": str(installation), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["NUMBA_OPT"] = "0"  # compiles in less time
    command = [*unprivileged(), sys.executable, "-W", "error", "-c", RUN, str(installation), str(reference.store)]
    try:
        done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, check=False)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert done.returncode == 0, done.stderr
    expected = [
        "read-only",
        "None",
        str(counter_hash((1, 2), np.arange(5)).tolist()),
        str(reference.source.batch(np.array([3, 700]))["counts"].sum()),
    ]
    assert done.stdout.splitlines() == expected
    assert done.stderr == ""
