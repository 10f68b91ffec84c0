"""What the scale benchmark measures: everything that one does with a store, from its path to the answer."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import lazypert as lp
from benchmarks.atlas import CONTROL

if TYPE_CHECKING:
    from collections.abc import Callable

N_NAMES = 1_000
"""Cells that are looked up by name, or read."""

N_LOADERS = 30

_FILTER = {"enable_knockdown_filter": True, "residual_expression": 1.0, "cell_residual_expression": 1.0}
"""Options of quality control; perturbations of an atlas do nothing, and half of them pass by chance."""

_LOADER = {"sentence_size": 64, "sentences_per_batch": 8, "to": "numpy"}


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the report.

    Attributes
    ----------
    about
        What is measured.
    run
        Takes the path of a store. What it returns counts as the answer, whose bytes are reported if it has some.
    reads_h5ad
        Whether it takes the path of the H5AD file instead: what others do.
    """

    about: str
    run: Callable[[str], Any]
    reads_h5ad: bool = False


def _pert(store: str) -> Any:
    return lp.open(store).pert


def _labels(store: str) -> dict[str, str]:
    groups = _pert(store).groups
    perturbed = groups.labels["perturbation"][~groups.is_control_code]
    return {"perturbation": str(perturbed[0]), "cell_type": str(groups.labels["cell_type"][0])}


def _select(store: str) -> Any:
    return lp.open(store).pert.select(**_labels(store))


def _select_perturbation(store: str) -> Any:
    return lp.open(store).pert.select(perturbation=_labels(store)["perturbation"]).pert.table()


def _select_mask(store: str) -> Any:
    ds = lp.open(store)
    return ds.isel(cell=ds.cell_type == _labels(store)["cell_type"]).sizes


def _aggregate(by: tuple[str, ...]) -> Callable[[str], Any]:
    return lambda store: _pert(store).aggregate(by=by, of="counts", stats=("mean", "var") if by else "mean").compute()


def _find_cells(store: str) -> Any:
    pert = _pert(store)
    rows = pert.store.n_obs // 2 + np.arange(min(N_NAMES, pert.store.n_obs // 2))
    names = pert.obs_names(rows)
    assert (pert.rows_of(names) == rows).all()


def _split(mode: str, digest: bool = False) -> Callable[[str], Any]:
    def run(store: str) -> Any:
        pert, labels = _pert(store), _labels(store)
        options = {
            "random": {},
            "zeroshot": {"held_out_cell_types": (labels["cell_type"],)},
            "fewshot": {"held_out_perturbations": (labels["perturbation"],)},
        }[mode]
        splits = pert.split(mode, **options)
        return splits.digest if digest else [len(splits[name]) for name in ("train", "valid", "test")]

    return run


def _split_file(suffix: str) -> Callable[[str], Any]:
    def run(store: str) -> Any:
        ds = lp.open(store)
        splits = ds.pert.split("random")
        with tempfile.TemporaryDirectory() as folder:
            splits.save(Path(folder, f"split{suffix}"))
            lp.SplitResult.load(Path(folder, f"split{suffix}"), ds)

    return run


def _report(store: str) -> Any:
    pert = _pert(store)
    return len(pert.split("random").report(pert.source()).leaks)


def _setup(store: str, **options: Any) -> Any:
    config = lp.PerturbationPipelineConfig(**{name: getattr(lp.open(store).pert.store.roles, name) for name in (
        "pert_col", "control_pert", "cell_type_col", "batch_col")}, **options)  # fmt: skip
    return lp.PerturbationPipeline(config).setup(store)


def _first_batch(order: str = "random") -> Callable[[str], Any]:
    def run(store: str) -> Any:
        result = _setup(store, mapping_strategy=order)
        return next(iter(result.loader("train", **_LOADER))).counts.shape

    return run


def _evaluate(store: str) -> Any:
    return next(iter(_setup(store).loader("test", **_LOADER))).counts.shape


def _loaders(store: str) -> Any:
    result = _setup(store)
    for _ in range(N_LOADERS):
        next(iter(result.loader("train", **_LOADER)))


def _epoch_plan(store: str) -> Any:
    sampler = _setup(store, sentence_size=64).train_sampler
    return len(next(iter(sampler)))


def _manifest(store: str) -> Any:
    result = _setup(store, **_FILTER)
    with tempfile.TemporaryDirectory() as folder:
        lp.save_run(Path(folder, "run.json"), result, [result.loader("train", **_LOADER)])
        lp.load_run(Path(folder, "run.json"))


def _codes(store: str) -> Any:
    source = _pert(store).source()
    return source.get_group_codes()


def _source_batch(store: str) -> Any:
    source = _pert(store).source()
    return source.batch(np.linspace(0, len(source) - 1, N_NAMES).astype(np.int64))["counts"]


def _mapping(strategy: str) -> Callable[[str], Any]:
    return lambda store: _pert(store).match_controls(strategy=strategy)


def _mapping_blocks(strategy: str) -> Callable[[str], Any]:
    def run(store: str) -> Any:
        pert = _pert(store)
        mapping = lp.BatchControlMapping() if strategy == "batch" else lp.RandomControlMapping()
        return sum(len(block.rows) for block in mapping.iterate(pert))

    return run


def _lazy(h5ad: str) -> Any:
    import anndata

    return anndata.experimental.read_lazy(h5ad)


def _lazy_table(h5ad: str) -> Any:
    obs = _lazy(h5ad).obs[["cell_type", "perturbation"]].to_memory()
    return obs.groupby(["cell_type", "perturbation"], observed=True).size()


def _lazy_select(h5ad: str) -> Any:
    cells = _lazy(h5ad)
    chosen = (cells.obs["cell_type"] == "Type1") & (cells.obs["perturbation"] == CONTROL)
    return cells[chosen.values].shape


def _lazy_mean(h5ad: str) -> Any:
    X = _lazy(h5ad).X
    sums = X.map_blocks(lambda block: np.asarray(block.sum(axis=0)), chunks=((1,) * X.numblocks[0], X.chunks[1]))
    return sums.sum(axis=0).compute() / len(X)


OPERATIONS = {
    "open": Operation("lp.open", lp.open),
    "table": Operation("ds.pert.table()", lambda store: _pert(store).table()),
    "select": Operation("ds.pert.select of a perturbation in a cell type", _select),
    "select-perturbation": Operation("ds.pert.select of a perturbation, and its table", _select_perturbation),
    "select-mask": Operation('ds.isel(cell=ds.cell_type == "...")', _select_mask),
    "obs": Operation("obs of that selection as a DataFrame", lambda store: _select(store).pert.obs()),
    "find-cells": Operation(f"ds.pert.rows_of {N_NAMES:,} names", _find_cells),
    "sum": Operation('ds.X.sum("gene").compute()', lambda store: lp.open(store).X.sum("gene").compute()),
    "mean": Operation('ds.X.mean("cell").compute()', lambda store: lp.open(store).X.mean("cell").compute()),
    "mean-fast": Operation('ds.pert.aggregate(by=(), stats="mean", of="counts").compute()', _aggregate(())),
    "aggregate": Operation(
        'ds.pert.aggregate(stats=("mean", "var"), of="counts").compute()', _aggregate(("cell_type", "perturbation"))
    ),
    "split-random": Operation("ds.pert.split()", _split("random")),
    "split-zeroshot": Operation("zero-shot split", _split("zeroshot")),
    "split-fewshot": Operation("few-shot split", _split("fewshot")),
    "split-digest": Operation("random split and its digest", _split("random", digest=True)),
    "split-file": Operation("save and load it as a rule", _split_file(".json")),
    "split-report": Operation("random split and its report", _report),
    "knockdown": Operation("ds.pert.knockdown()", lambda store: _pert(store).knockdown()),
    "codes": Operation("source.get_group_codes()", _codes),
    "source-batch": Operation(f"source.batch of {N_NAMES:,} cells", _source_batch),
    "mapping-random": Operation("ds.pert.match_controls()", _mapping("random")),
    "mapping-batch": Operation('ds.pert.match_controls(strategy="batch")', _mapping("batch")),
    "mapping-blocks": Operation("random controls, block by block", _mapping_blocks("random")),
    "mapping-batch-blocks": Operation("controls of the same batch, block by block", _mapping_blocks("batch")),
    "setup": Operation("PerturbationPipeline.setup with knockdown QC", lambda s: _setup(s, **_FILTER)),
    "epoch-plan": Operation("setup, and the first batch of the sampler", _epoch_plan),
    "first-batch": Operation("setup, loader and first batch with controls", _first_batch()),
    "first-batch-batches": Operation("the same with controls of the same batch", _first_batch("batch")),
    "first-test-batch": Operation("the same for evaluation", _evaluate),
    "loaders": Operation(f"{N_LOADERS} loaders, and a batch of each", _loaders),
    "manifest": Operation("save_run and load_run", _manifest),
    "verify": Operation("lp.verify", lp.verify),
    "read-lazy": Operation("anndata.experimental.read_lazy", _lazy, reads_h5ad=True),
    "read-lazy-table": Operation("the same, and cells per group", _lazy_table, reads_h5ad=True),
    "read-lazy-select": Operation("the same, and the controls of a cell type", _lazy_select, reads_h5ad=True),
    "read-lazy-mean": Operation("the same, and the mean per gene", _lazy_mean, reads_h5ad=True),
}
"""By name, in the order of the report."""
