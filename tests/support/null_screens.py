"""Stores of null screens."""

import lazypert as lp
from benchmarks.fairness_settings import ROLES
from lazypert.simulate import NullScreenConfig, null_screen


def convert(paths, store, **options):
    return lp.convert(paths, store, **ROLES, **options)


def null_store(folder, *, n_datasets=1, order="grouped", **options):
    """Simulate a null screen in one or more files and convert it; options are those of `NullScreenConfig`."""
    paths = null_screen(
        [folder / f"null{n}.h5ad" for n in range(n_datasets)], NullScreenConfig(**options), overwrite=True
    )
    return convert(paths, folder / f"{order}.zarr", order=order)
