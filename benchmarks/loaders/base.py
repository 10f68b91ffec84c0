"""Input and output of every rival in the loading benchmark.

Requires only NumPy, because it also runs in the rivals' own interpreters.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

CELL_TYPE, PERTURBATION, BATCH = "cell_type", "perturbation", "batch"
GROUPS = (CELL_TYPE, PERTURBATION)
CONTROL = "non-targeting"
HVG = "highly_variable"
CSR, DENSE, CHUNKS = "csr", "dense", "chunks"
FORMS = (CSR, DENSE, "hvg")
WITH_CONTROLS = "+controls"
ENDPOINTS = tuple(form + tail for tail in ("", WITH_CONTROLS) for form in FORMS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One measured run.

    Parameters
    ----------
    rival
        Name of the rival.
    endpoint
        Form of the final batch: one of `ENDPOINTS`, or `CHUNKS` for the limit.
    source
        The file or folder to read.
    genes
        The file that `Genes.load` reads.
    sentence_size, sentences_per_batch
        Cells of one group side by side, and the number of these sentences in a batch.
    seconds
        How long to measure after the first batch.
    once
        Stop at the end of the first epoch, because a second one would read from the page cache.
    threads
        Threads of lazypert and of the limit; None for lazypert's default; the limit then uses one per core.
    setting
        Setting of an annbatch sampler, in the format of `annbatch.Setting`.
    """

    rival: str
    endpoint: str
    source: str
    genes: str
    sentence_size: int
    sentences_per_batch: int
    seconds: float
    once: bool = False
    threads: int | None = None
    setting: str | None = None

    @property
    def form(self) -> str:
        """The endpoint without controls."""
        return self.endpoint.removesuffix(WITH_CONTROLS)

    @property
    def controls(self) -> bool:
        """Whether each cell comes with a control of its cell type."""
        return self.endpoint.endswith(WITH_CONTROLS)


@dataclass(frozen=True, slots=True, eq=False)
class Genes:
    """The genes of a screen.

    Attributes
    ----------
    names
        Their names, in the order of the file.
    hvg
        (n,) bool: whether a gene is highly variable.
    weights
        (n,) int64: random weights; the weighted sum of a cell's values is its fingerprint.
    """

    names: list[str]
    hvg: NDArray[np.bool_]
    weights: NDArray[np.int64]

    @classmethod
    def load(cls, path: str | Path) -> Genes:
        """Read a file that `save` wrote."""
        with np.load(path) as held:
            return cls(held["names"].tolist(), held["hvg"], held["weights"])

    def save(self, path: Path) -> None:
        """Write the genes for the rivals' processes."""
        np.savez(path, names=np.array(self.names), hvg=self.hvg, weights=self.weights)

    def weights_of(self, form: str) -> NDArray[np.int64]:
        """Weights of the genes in a batch of this form."""
        return self.weights[self.hvg] if form == "hvg" else self.weights


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A final batch.

    Attributes
    ----------
    cells
        Number of cells, without controls.
    values, controls
        Dense or CSR matrices; None for the limit.
    padding
        Number of padding cells; None if the rival does not report it.
    """

    cells: int
    values: Any = None
    controls: Any = None
    padding: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A rival that is ready to load.

    Attributes
    ----------
    epoch
        ``epoch(number)`` yields the batches of an epoch.
    notes
        Remarks for the report, by name.
    """

    epoch: Callable[[int], Iterator[Batch]]
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """One way to load a screen.

    Parameters
    ----------
    open
        Opens the source of a `Job`.
    modules
        Modules to import before measuring starts.
    package
        Package to install, which also selects an interpreter (``--python``).
    reads
        Kind of store or file that it reads; `load` makes these.
    endpoints
        Endpoints that it supports.
    about
        Description for the report.
    coherent
        Whether every `Job.sentence_size` consecutive rows are cells of one group.
    slow
        Whether it is measured for longer, but in one round only.
    cold
        Whether it reads while it loads, so that a cold page cache makes a difference.
    """

    open: Callable[[Job, Genes], Opened]
    modules: tuple[str, ...]
    package: str
    reads: str
    endpoints: tuple[str, ...]
    about: str
    coherent: bool = True
    slow: bool = False
    cold: bool = True

    def load(self) -> None:
        """Import the modules, and let JAX find its devices, which takes a while the first time."""
        modules = [importlib.import_module(module) for module in self.modules]
        for module in modules:
            if module.__name__ == "jax":
                module.devices()


def fingerprints(values: Any, weights: NDArray[np.int64]) -> list[int]:
    """Fingerprint of each row of a matrix of counts, which identifies its cell.

    The matrix is dense with any number of axes before the last, a SciPy CSR matrix, or has a ``to_scipy()``.
    """
    if hasattr(values, "to_scipy"):
        values = values.to_scipy()
    if not hasattr(values, "indptr"):
        return (np.asarray(values).reshape(-1, len(weights)).astype(np.int64) @ weights).tolist()
    cumulative = np.concatenate([[0], np.cumsum(values.data.astype(np.int64) * weights[values.indices])])
    return np.diff(cumulative[values.indptr]).tolist()
