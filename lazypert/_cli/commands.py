"""The commands demo, convert, append, add-obs and verify."""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any

from lazypert._cli.output import print_field, print_warnings
from lazypert.screen.renames import STRIP

if TYPE_CHECKING:
    import argparse

    from lazypert.screen.renames import Renames
    from lazypert.store.store import Store

DEMO_COLUMNS = ("pert_col", "control_pert", "cell_type_col", "batch_col", "var_gene_col")
"""Options of the demo that describe the user's file."""


def demo(options: argparse.Namespace) -> None:
    """Run the demo."""
    from lazypert._demo import DemoConfig, run_demo
    from lazypert._internal.paths import local_path

    columns = {name: getattr(options, name) for name in DEMO_COLUMNS if getattr(options, name) is not None}
    out = local_path("--out", options.out, "The demo writes to a local folder.")
    h5ad = None if options.h5ad is None else local_path("--h5ad", options.h5ad, "Copy the file to this machine first.")
    run_demo(DemoConfig(out=out, h5ad=h5ad, seed=options.seed, **columns))


def convert(options: argparse.Namespace) -> None:
    """Convert files into a store and print a summary."""
    from lazypert.conversion.convert import convert
    from lazypert.errors import NotCopiedWarning
    from lazypert.store.store import Store

    start = time.perf_counter()
    storage_options = storage_options_of("--storage-option", options.storage_option)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotCopiedWarning)  # the summary lists what was not copied
        path = convert(
            options.source,
            options.store,
            pert_col=options.pert_col,
            control_pert=options.control_pert,
            control_col=options.control_col,
            separator=options.separator,
            rename_perturbations=_renames(options.rename_perturbations),
            cell_type_col=options.cell_type_col,
            batch_col=options.batch_col,
            covariates=options.covariate,
            layer=options.layer,
            order=options.order,
            seed=options.seed,
            memory_limit=options.memory_limit,
            overwrite=options.overwrite,
            join=options.join,
            obs=options.obs,
            isolate=True,
            storage_options=storage_options,
            source_storage_options=storage_options_of("--source-storage-option", options.source_storage_option),
            work_dir=options.work_dir,
            compression=options.compression,
        )
    _print_summary(Store(path, storage_options), time.perf_counter() - start)


def storage_options_of(name: str, given: list[str] | None) -> dict[str, Any] | None:
    """Options by name, from the texts ``KEY=VALUE``; ``true`` and ``false`` are booleans."""
    from lazypert.errors import ConfigError

    if given is None:
        return None
    options: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not key or not equals or key in options:
            raise ConfigError(f"{name}: got {key!r} without a value or twice, expected KEY=VALUE with each key once.")
        options[key] = {"true": True, "false": False}.get(value.lower(), value)
    return options


def _renames(given: list[str] | None) -> Renames | None:
    """Names by label, from the texts ``LABEL=NAME``."""
    from lazypert.errors import ConfigError

    if given is None:
        return None
    if given == [STRIP]:
        return "strip"
    names: dict[str, str] = {}
    for text in given:
        label, equals, name = text.partition("=")
        if not equals or not name or label in names:
            raise ConfigError(
                f"--rename-perturbations: got {text!r}, expected LABEL=NAME with each label once, or only 'strip'. In "
                "Python, rename_perturbations also takes labels that contain '='."
            )
        names[label] = name
    return names


def _print_summary(store: Store, seconds: float) -> None:
    from lazypert._internal.memory import format_bytes, peak_memory

    size = sum(entry.size for entry in store.read_manifest())
    source_size = sum(source["size"] for source in store.attrs["sources"])
    print_field("store", store.path)
    print_field("cells", f"{store.n_obs:,}")
    print_field("genes", f"{store.n_vars:,}")
    print_field("nonzeros", f"{store.matrix().stats['nnz']:,}")
    print_field("groups", f"{store.attrs['summary']['n_groups']:,}")
    print_field("size", f"{format_bytes(size)}, converted from {format_bytes(source_size)}")
    print_field("time", f"{seconds:.1f} s")
    print_field("peak memory", format_bytes(peak_memory()))
    print_warnings(store)


def append(options: argparse.Namespace) -> None:
    """Append the cells of files to a store and print a summary."""
    from lazypert.errors import NotCopiedWarning
    from lazypert.store.store import Store
    from lazypert.updates.append import append

    start = time.perf_counter()
    storage_options = storage_options_of("--storage-option", options.storage_option)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotCopiedWarning)  # the summary lists what was not copied
        append(
            options.store,
            options.source,
            dataset=options.dataset,
            genes=options.genes,
            memory_limit=options.memory_limit,
            obs=options.obs,
            storage_options=storage_options,
            source_storage_options=storage_options_of("--source-storage-option", options.source_storage_option),
            work_dir=options.work_dir,
        )
    _print_summary(Store(options.store, storage_options), time.perf_counter() - start)


def add_obs(options: argparse.Namespace) -> None:
    """Add obs columns to a store and name the columns that it has then."""
    from lazypert.store.store import Store
    from lazypert.updates.add_obs import add_obs

    storage_options = storage_options_of("--storage-option", options.storage_option)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        add_obs(
            options.store,
            options.table,
            columns=options.column,
            overwrite=options.overwrite,
            on_unknown="ignore" if options.ignore_unknown else "error",
            storage_options=storage_options,
            work_dir=options.work_dir,
        )
    store = Store(options.store, storage_options)
    print_field("store", store.path)
    print_field("obs", ", ".join(store.obs_columns))
    for warning in caught:
        print_field("warning", warning.message)


def verify(options: argparse.Namespace) -> None:
    """Compare a store with its manifest."""
    from lazypert.store.verify import verify

    storage_options = storage_options_of("--storage-option", options.storage_option)
    print(f"ok: {verify(options.store, storage_options=storage_options):,} files match the manifest")
