"""A third-party converter whose reader does what its file says: a line such as ``read_block segv``.

`install` makes it known as an installed package would be, in this process and in those that it starts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from lazypert.converter import BlockSpec, CSRBlock, RowBlock

_N_OBS, _N_VARS = 20, 5
_SIGNATURE = "WILD"


def install(folder: Path, monkeypatch) -> None:
    """Make the converter known from a folder."""
    info = folder / "wild_reader-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wild-reader\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lazypert.converters]\nwild = tests.support.wild_converter:WildConverter\n")
    monkeypatch.syspath_prepend(str(folder))


def write_wild(path: Path, behaviour: str = "") -> Path:
    """Write a file for the converter."""
    path.write_text(f"{_SIGNATURE}\n{behaviour}\n")
    return path


def segv() -> None:
    ctypes.string_at(1)


def loop() -> None:
    """Compute for a very long time without releasing the interpreter's lock, as HDF5 does."""
    re.match(r"(a+)+$", "a" * 64 + "b")


def read_on() -> None:
    with Path(os.devnull).with_name("zero").open("rb") as file:
        while file.read(1 << 20):
            pass


ACTIONS = {
    "segv": segv,
    "abort": os.abort,
    "exit": lambda: os._exit(3),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "loop": loop,
    "read on": read_on,
    "print": lambda: os.write(1, b"text among the answers\n"),
    "raise": lambda: (_ for _ in ()).throw(OSError(5, "Input/output error")),
}


class WildConverter:
    name = "wild"

    def recognises(self, path):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return path.is_file() and path.read_text()[: len(_SIGNATURE)] == _SIGNATURE
        return False

    def open(self, path):
        method, _, action = path.read_text().splitlines()[1].partition(" ")
        reader = WildReader(path, method, action)
        reader.act("open")
        return reader


@dataclass(frozen=True)
class WildReader:
    path: Path
    method: str
    action: str
    n_obs: int = _N_OBS
    n_vars: int = _N_VARS
    obs_columns: tuple[str, ...] = ("perturbation",)
    not_carried: tuple[str, ...] = ()

    @property
    def matrices(self):
        return {"X": _N_VARS}

    @property
    def obsm(self):
        return {}

    def act(self, method):
        if method == self.method:
            ACTIONS[self.action]()

    def obs_names(self, start=0, stop=None):
        self.act("obs_names")
        return np.array([f"c{i}" for i in range(_N_OBS)], dtype=object)[start:stop]

    def obs_column(self, name, start=0, stop=None):
        self.act("obs_column")
        return pd.Categorical.from_codes(np.arange(_N_OBS) % 2, ["NT", "TP53"])[start:stop]

    def var(self):
        self.act("var")
        return pd.DataFrame(index=[f"g{j}" for j in range(_N_VARS)])

    def nnz(self, matrix):
        return _N_OBS * _N_VARS

    def scratch_bytes(self, matrix):
        return 0

    def blocks(self, matrix, max_bytes):
        return [BlockSpec(matrix, 0, 12), BlockSpec(matrix, 12, _N_OBS)]

    def read_block(self, spec):
        if spec.start:
            self.act("read_block")
        matrix = sparse.csr_matrix(np.ones((spec.stop - spec.start, _N_VARS), "f4"))
        return RowBlock(spec.start, CSRBlock(matrix.indptr.astype("i8"), matrix.indices, matrix.data, _N_VARS))
