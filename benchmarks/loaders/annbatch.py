"""annbatch: batches of one class (`ClassSampler`), random batches, and controls from a second loader."""

from __future__ import annotations

import importlib.util
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.loaders.base import CONTROL, CSR, GROUPS, Batch, Genes, Job, Opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

ZARRS, PYTHON = "zarrs", "zarr"


@dataclass(frozen=True, slots=True)
class Setting:
    """How annbatch reads: rows per chunk, chunks read at once, and rows per batch."""

    chunk_size: int
    preload_nchunks: int
    batch_size: int
    codecs: str | None = None

    @classmethod
    def parse(cls, text: str) -> Setting:
        """Parse ``32x128x32`` or ``32x128x32@zarr``; by default, the fastest installed codec pipeline is used."""
        sizes, _, codecs = text.partition("@")
        chunk, preload, batch = (int(size) for size in sizes.split("x"))
        if min(chunk, preload, batch) < 1 or chunk * preload % batch or codecs not in ("", ZARRS, PYTHON):
            raise ValueError(
                f"got {text!r}, expected CHUNKxPRELOADxBATCH, where BATCH divides CHUNK * PRELOAD, "
                "with an optional @zarrs or @zarr"
            )
        return cls(chunk, preload, batch, codecs or None)

    def __str__(self) -> str:
        sizes = f"{self.chunk_size}x{self.preload_nchunks}x{self.batch_size}"
        return f"{sizes}@{self.codecs}" if self.codecs else sizes

    def use_codecs(self) -> str:
        """Select the codec pipeline as annbatch's documentation recommends, and return its name."""
        import zarr

        codecs = self.codecs or (ZARRS if importlib.util.find_spec("zarrs") else PYTHON)
        if codecs == ZARRS:
            zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
        return codecs


@dataclass(frozen=True, slots=True, eq=False)
class Classes:
    """Class of each cell of a collection; annbatch's classes are our groups.

    Attributes
    ----------
    codes
        (n_cells,) class of each cell.
    cell_type
        (n_classes,) number of each class's cell type.
    is_control
        (n_classes,) whether a class consists of controls.
    shortest
        (n_classes,) length of the shortest run of each class.
    """

    codes: NDArray[np.int64]
    cell_type: NDArray[np.int64]
    is_control: NDArray[np.bool_]
    shortest: NDArray[np.int64]

    @classmethod
    def of(cls, collection: Any) -> Classes:
        """Read the two columns that define the classes."""
        obs = collection.obs(columns=list(GROUPS)).reset_index(drop=True)
        grouped = obs.groupby(list(GROUPS), observed=True, sort=True)
        codes = grouped.ngroup().to_numpy().astype(np.int64)
        first = np.unique(codes, return_index=True)[1]
        types = obs[GROUPS[0]].astype("category").cat.codes.to_numpy().astype(np.int64)
        control = (obs[GROUPS[1]] == CONTROL).to_numpy()
        edges = np.concatenate([[0], np.flatnonzero(np.diff(codes)) + 1, [len(codes)]])
        shortest = np.full(len(first), len(codes))
        np.minimum.at(shortest, codes[edges[:-1]], np.diff(edges))
        return cls(codes, types[first], control[first], shortest)

    def weights(self, chunk_size: int, *, controls: bool) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Weights of the classes, by number of cells, and weights of the control classes, by demand.

        A class with a run shorter than a chunk has weight 0, because `ClassSampler` refuses it. With controls,
        so does every class of a cell type whose controls have weight 0.
        """
        cells = np.bincount(self.codes).astype(np.float64)
        long_enough = self.shortest >= chunk_size
        weights = np.where(long_enough, cells, 0)
        if not controls:
            return weights, None
        pools = self.is_control & long_enough
        weights *= np.isin(self.cell_type, self.cell_type[pools])
        needed = np.bincount(self.cell_type, weights)
        return weights, np.where(pools, needed[self.cell_type], 0)


def open_classes(job: Job, genes: Genes) -> Opened:
    """Batches of one class, drawn with replacement in proportion to class size, so that a pass resembles an epoch."""
    import pandas as pd
    from annbatch import DatasetCollection, Loader
    from annbatch.samplers import ClassSampler

    assert job.setting is not None
    setting = Setting.parse(job.setting)
    codecs = setting.use_codecs()
    collection = DatasetCollection(job.source, mode="r")
    classes = Classes.of(collection)
    labels = pd.Categorical.from_codes(classes.codes, range(len(classes.cell_type)))
    weights, control_weights = classes.weights(setting.chunk_size, controls=job.controls)

    def loader(weights: NDArray[np.float64], seed: int) -> Any:
        sampler = ClassSampler(
            chunk_size=setting.chunk_size,
            preload_nchunks=setting.preload_nchunks,
            batch_size=setting.batch_size,
            classes=labels,
            class_weights=weights,
            num_samples=len(classes.codes),
            drop_last=True,
            rng=np.random.default_rng(seed),
        )
        # The index is cheaper than obs and suffices: a batch has the class of its first cell.
        return Loader(batch_sampler=sampler, preload_to_gpu=False, return_index=True).use_collection(
            collection, load_adata=_matrix_only
        )

    main = loader(weights, 0)
    controls = None if control_weights is None else _endless(loader(control_weights, 1))
    type_of = classes.cell_type[classes.codes]
    finish = _finisher(job, genes)

    def epoch(_: int) -> Iterator[Batch]:
        if controls is None:
            for batch in main:
                yield Batch(batch["X"].shape[0], finish(batch["X"]))
        else:
            for batch, control in _matched(main, controls, type_of):
                yield Batch(batch["X"].shape[0], finish(batch["X"]), finish(control["X"]))

    left_out = weights == 0
    notes = {
        "setting": str(setting),
        "codecs": codecs,
        "classes": len(weights),
        "classes_left_out": int(left_out.sum()),
        "cells_left_out": int(left_out[classes.codes].sum()),
    }
    return Opened(epoch, notes)


def open_random(job: Job, genes: Genes) -> Opened:
    """Random batches from the shuffled collection, each cell once per epoch."""
    from annbatch import DatasetCollection, Loader

    assert job.setting is not None
    setting = Setting.parse(job.setting)
    codecs = setting.use_codecs()
    loader = Loader(
        chunk_size=setting.chunk_size,
        preload_nchunks=setting.preload_nchunks,
        batch_size=setting.batch_size,
        shuffle=True,
        preload_to_gpu=False,
        rng=np.random.default_rng(0),
    ).use_collection(DatasetCollection(job.source, mode="r"), load_adata=_matrix_only)
    finish = _finisher(job, genes)

    def epoch(_: int) -> Iterator[Batch]:
        for batch in loader:
            yield Batch(batch["X"].shape[0], finish(batch["X"]))

    return Opened(epoch, {"setting": str(setting), "codecs": codecs})


def describe(notes: dict[str, Any]) -> str:
    """Describe the notes for the report."""
    text = f"{notes['setting'].partition('@')[0]} (chunk x preload x batch), {notes['codecs']} codecs"
    if "classes" not in notes:
        return text
    return (
        f"{text}; {notes['classes_left_out']:,} of {notes['classes']:,} classes ({notes['cells_left_out']:,} cells) "
        "left out because they have runs shorter than a chunk"
    )


def _matrix_only(group: Any) -> Any:
    """Load only X: annbatch's documentation warns that obs slows down every batch."""
    import anndata as ad

    return ad.AnnData(X=ad.io.sparse_dataset(group["X"]))


def _endless(loader: Any) -> Iterator[dict[str, Any]]:
    while True:
        yield from loader


def _matched(
    main: Any, controls: Iterator[dict[str, Any]], type_of: NDArray[np.int64]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Pair each batch with a batch of controls of its cell type; controls of other types are kept for later."""
    waiting: defaultdict[int, deque[dict[str, Any]]] = defaultdict(deque)
    for batch in main:
        wanted = int(type_of[batch["index"][0]])
        while not waiting[wanted]:
            drawn = next(controls)
            waiting[int(type_of[drawn["index"][0]])].append(drawn)
        yield batch, waiting[wanted].popleft()


def _finisher(job: Job, genes: Genes) -> Callable[[Any], Any]:
    """Return a function that converts a batch, a SciPy CSR matrix, to the endpoint."""
    if job.form == CSR:
        return lambda x: x
    import jax

    if job.form == "hvg":
        columns = np.flatnonzero(genes.hvg)
        # Faster than selecting columns of the sparse matrix.
        return lambda x: jax.block_until_ready(jax.device_put(np.take(_dense(x), columns, axis=1)))
    return lambda x: jax.block_until_ready(jax.device_put(_dense(x)))


def _dense(x: Any) -> NDArray[np.float32]:
    return x.toarray().astype(np.float32, copy=False)
