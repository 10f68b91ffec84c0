"""What every rival of the loading benchmark is given, and what it hands over.

Nothing here needs more than NumPy: it runs in the rivals' own interpreters too.
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
        Who loads.
    endpoint
        What a batch is in the end: one of `ENDPOINTS`, or `CHUNKS` for the limit.
    source
        The file or folder to read.
    genes
        The file that `Genes.load` reads.
    sentence_size, sentences_per_batch
        Cells of one class that stand together, and how many of these make a batch.
    seconds
        Measure so long after the first batch.
    once
        Stop at the end of the first epoch: the second would find its bytes in the page cache.
    threads
        For lazypert and the limit; None for lazypert's default, and one a core.
    setting
        An annbatch sampler's, as `annbatch.Setting` writes it.
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
        """The endpoint without its controls."""
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
        (n,) bool: the highly variable ones.
    weights
        (n,) int64: a cell's values times these, summed, tell it from all others.
    """

    names: list[str]
    hvg: NDArray[np.bool_]
    weights: NDArray[np.int64]

    @classmethod
    def load(cls, path: str | Path) -> Genes:
        """Read what `save` wrote."""
        with np.load(path) as held:
            return cls(held["names"].tolist(), held["hvg"], held["weights"])

    def save(self, path: Path) -> None:
        """Write them for the rivals' processes."""
        np.savez(path, names=np.array(self.names), hvg=self.hvg, weights=self.weights)

    def weights_of(self, form: str) -> NDArray[np.int64]:
        """Weights of the genes that a batch of this form has."""
        return self.weights[self.hvg] if form == "hvg" else self.weights


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """A batch, ready to be used.

    Attributes
    ----------
    cells
        Rows delivered, without their controls.
    values, controls
        The matrices, dense or CSR; None for the limit.
    fillers
        Rows that only fill up a short sentence, where the rival says so.
    """

    cells: int
    values: Any = None
    controls: Any = None
    fillers: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A rival that is ready to load.

    Attributes
    ----------
    epoch
        ``epoch(number)`` runs through the batches of an epoch.
    notes
        What a reader of the result should know, by name.
    """

    epoch: Callable[[int], Iterator[Delivery]]
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """One way to load a screen.

    Parameters
    ----------
    open
        Opens a `Job`'s source.
    modules
        What to import before the measuring starts.
    package
        What to install; also the name by which an interpreter is chosen.
    reads
        The kind of store or file that it reads, as `load` makes them.
    endpoints
        Those that it can reach.
    about
        What it does, for the report.
    coherent
        Whether every `Job.sentence_size` rows are cells of one class.
    slow
        Whether it gets the slow ones' time, and one round.
    cold
        Whether it reads while it loads, so that a cold page cache means something.
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
        """Import what it needs, and let JAX find its devices, which takes it a while the first time."""
        found = [importlib.import_module(module) for module in self.modules]
        for module in found:
            if module.__name__ == "jax":
                module.devices()


def fingerprints(values: Any, weights: NDArray[np.int64]) -> list[int]:
    """One number for each row of a matrix of counts, by which its cell can be told.

    The matrix is dense with any axes before the last, or SciPy's CSR, or has a ``to_scipy()``.
    """
    if hasattr(values, "to_scipy"):
        values = values.to_scipy()
    if not hasattr(values, "indptr"):
        return (np.asarray(values).reshape(-1, len(weights)).astype(np.int64) @ weights).tolist()
    upto = np.concatenate([[0], np.cumsum(values.data.astype(np.int64) * weights[values.indices])])
    return np.diff(upto[values.indptr]).tolist()
