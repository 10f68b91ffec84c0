"""Sections of the demo about the screen itself: conversion, and what the store holds."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._demo.report import join_names
from lazypert._internal.files import directory_size
from lazypert._internal.memory import format_bytes
from lazypert.conversion.convert import convert
from lazypert.converter import open_source
from lazypert.dataset.open import open as open_dataset
from lazypert.store.verify import verify

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import xarray as xr

    from lazypert._demo.state import Demo, DemoConfig

_REFERENCE = "reference-screen.h5ad"


def convert_screen(demo: Demo) -> None:
    """Simulate the reference screen unless a file was given, and convert it."""
    with demo.report.section("Conversion"):
        demo.config.out.mkdir(parents=True, exist_ok=True)
        if demo.config.h5ad is None:
            from lazypert.simulate import reference_screen

            path = reference_screen(demo.config.out / _REFERENCE, seed=demo.config.seed, overwrite=True)
            demo.config = replace(demo.config, cell_type_col="cell_type", batch_col="batch", var_gene_col="gene_name")
            demo.report.line("simulated", f"{path} ({format_bytes(path.stat().st_size)})")
        else:
            path = demo.config.h5ad
            demo.config = _with_usual_columns(demo, open_source(path).obs_columns)
            demo.report.line("file", f"{path} ({format_bytes(path.stat().st_size)})")
        demo.store = demo.config.out / f"{path.name.removesuffix('.h5ad')}.lazypert.zarr"
        _convert(demo, path)
        demo.report.line("verified", f"ok: {verify(demo.store)} files match the manifest")


def _with_usual_columns(demo: Demo, columns: Sequence[str]) -> DemoConfig:
    """Fill in cell type and batch columns that were not given, if the file has the usual ones."""
    usual = {name: name.removesuffix("_col") for name in ("cell_type_col", "batch_col")}
    missing = {name: column for name, column in usual.items() if getattr(demo.config, name) is None}
    present: dict[str, Any] = {name: column for name, column in missing.items() if column in columns}
    for name in missing.keys() - present.keys():
        option = f"--{name.replace('_', '-')}"
        demo.report.line(
            usual[name].replace("_", " "), f"none: no obs column {usual[name]!r}; name another one with {option}"
        )
    return replace(demo.config, **present)


def _convert(demo: Demo, path: Path) -> None:
    start = time.perf_counter()
    convert(
        path,
        demo.store,
        pert_col=demo.config.pert_col,
        control_pert=demo.config.control_pert,
        cell_type_col=demo.config.cell_type_col,
        batch_col=demo.config.batch_col,
        overwrite=True,
    )
    size, took = directory_size(demo.store), time.perf_counter() - start
    demo.report.line("store", f"{demo.store} ({format_bytes(size)}, written in {took:.2f} s)")


def describe_screen(demo: Demo) -> None:
    """Open the store lazily, and describe the screen."""
    from dask.callbacks import Callback

    tasks = Counter[str]()
    with demo.report.section("Screen"):
        start = time.perf_counter()
        with Callback(pretask=lambda *_: tasks.update(["run"])):
            ds = open_dataset(demo.store)
        took = 1000 * (time.perf_counter() - start)
        per_cell = [variable for variable in ds.variables.values() if "cell" in variable.dims]
        lazy = sum(not isinstance(variable.data, np.ndarray) for variable in per_cell)
        demo.report.line(
            "xarray.Dataset",
            f"lazy: {lazy} of {len(per_cell)} variables along cell are read when used; "
            f"opened in {took:.0f} ms, {tasks['run']} tasks run",
        )
        demo.report.line("X", _describe_matrix(demo, ds["X"]))
        _describe_groups(demo)


def _describe_matrix(demo: Demo, x: xr.DataArray) -> str:
    matrix, n_blocks = demo.source.matrix, x.data.npartitions
    library = type(x.data).__module__.partition(".")[0]
    return (
        f"{library} {type(x.data).__name__} {x.shape} {x.dtype} in {n_blocks} block{'s' * (n_blocks > 1)}, "
        f"{format_bytes(x.nbytes)} if dense; {matrix.stats['nnz']:,} nonzeros, stored as {matrix.dtype}"
    )


def _describe_groups(demo: Demo) -> None:
    source, line = demo.source, demo.report.line
    groups = source.groups
    sizes = groups.table()["n_cells"]
    line("cells", f"{groups.n_obs:,}" + (f" ({groups.n_unlabelled:,} unlabelled)" if groups.n_unlabelled else ""))
    line("genes", f"{source.get_n_genes():,}")
    if demo.config.cell_type_col is not None:
        names = source.get_cell_type_categories()
        line("cell types", f"{len(names):,} ({join_names(names)})")
    line("perturbations", f"{len(source.get_pert_categories()):,}, including the control {demo.config.control_pert!r}")
    line("controls", f"{int(source.get_control_mask().sum()):,} cells")
    if demo.config.batch_col is not None:
        line("batches", f"{len(source.get_batch_categories()):,}")
    span = f"{sizes.min():,}" if sizes.nunique() == 1 else f"{sizes.min():,} to {sizes.max():,}"
    line("groups", f"{len(groups):,}, each of {span} cells")
