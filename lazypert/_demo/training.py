"""Sections of the demo about training: downsampling, the loader and an experiment file."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.randomness import generator
from lazypert.design.experiment import load_experiment_config
from lazypert.errors import EmptyPoolError
from lazypert.pipeline import PerturbationPipeline
from lazypert.plots import downsampling_sweep, plot_downsampling
from lazypert.sources.anndata_source import PerturbationAnnDataSource
from lazypert.splits.names import SPLITS

if TYPE_CHECKING:
    import jax
    from numpy.typing import NDArray

    from lazypert._demo.state import Demo
    from lazypert.store.matrix import Matrix

_FRACTIONS = (1.0, 0.75, 0.5, 0.25, 0.1)
_MAX_CELLS, _MAX_DENSE_BYTES = 2_000, 32 * 1024**2  # of the cells that are downsampled
_MAX_BATCHES = 400  # from the loader, so that a large screen does not take hours


def downsample(demo: Demo) -> None:
    """Downsample reads, and differentiate through the downsampling."""
    with demo.report.section("Downsampling"):
        matrix, layer = _find_counts(demo)
        if matrix is None:
            stats = demo.source.matrix.stats
            demo.report.skip(
                "downsampling",
                f"only raw counts can be downsampled, but X holds other values (minimum {stats['minimum']:g}, "
                f"maximum {stats['maximum']:g}, {'integers' if stats['integral'] else 'not integers'})",
            )
            return
        counts = _sample_controls(demo, matrix, layer)
        if not counts.any():
            demo.report.skip("downsampling", "the sampled controls have no reads")
            return
        import jax

        sweep = downsampling_sweep(counts, _FRACTIONS, key=jax.random.key(demo.config.seed))
        genes = np.median(sweep.genes, axis=1)
        rows = [
            [f"{fraction:.2f}", int(reads), f"{reads / sweep.total:.4f}", f"{n_genes:.0f}"]
            for fraction, reads, n_genes in zip(sweep.fractions, sweep.reads, genes, strict=True)
        ]
        demo.report.table(["fraction", "reads", "share of reads", "genes detected (median)"], rows)
        _differentiate(demo, counts)
    demo.figures["downsampling"] = lambda: plot_downsampling(sweep)


def _find_counts(demo: Demo) -> tuple[Matrix | None, str | None]:
    """Find a matrix of raw counts and its layer: X, or else the first layer that holds counts."""
    store = demo.source.store
    for name in store.matrices:
        if not name.startswith("obsm/") and store.open_matrix(name).is_counts:
            return store.open_matrix(name), name.removeprefix("layers/") if name != "X" else None
    return None, None


def _sample_controls(demo: Demo, matrix: Matrix, layer: str | None) -> NDArray[np.float32]:
    source, groups = demo.source, demo.source.groups
    controls = groups.rows(groups.is_control & (groups.ids >= 0))
    n = min(len(controls), _MAX_CELLS, max(1, _MAX_DENSE_BYTES // (4 * matrix.shape[1])))
    rows = np.sort(controls[np.sort(generator(demo.config.seed, 1).choice(len(controls), n, replace=False))])
    if layer is not None:
        source = PerturbationAnnDataSource(replace(source.config, layer=layer))
    origin = "X" if layer is None else f"layer {layer!r}, because X does not hold counts"
    demo.report.line("cells", f"{n:,} of {len(controls):,} controls, from {origin}")
    counts: NDArray[np.float32] = source.batch(rows)["counts"]
    return counts


def _differentiate(demo: Demo, counts: NDArray[np.float32]) -> None:
    """Compute the gradients of a loss with respect to the counts and to the fraction."""
    import jax
    import jax.numpy as jnp

    from lazypert.downsampling.downsampler import ReadDownsampler

    downsampler, key = ReadDownsampler(), jax.random.key(demo.config.seed)

    def loss(reads: jax.Array, fraction: jax.Array) -> jax.Array:
        return jnp.mean(jnp.log1p(downsampler(reads, key=key, fraction=fraction)))

    by_counts, by_fraction = jax.grad(loss, argnums=(0, 1))(jnp.asarray(counts), jnp.asarray(0.5))
    gradient, slope = np.asarray(by_counts, dtype=np.float64), float(by_fraction)
    n_finite, n_nonzero = int(np.isfinite(gradient).sum()), np.count_nonzero(gradient)
    demo.report.line("loss", "mean log1p of the downsampled reads, at fraction 0.5")
    demo.report.line(
        "d loss/d counts",
        f"norm {np.linalg.norm(gradient):.4g}; {n_finite:,} of {gradient.size:,} finite, {n_nonzero:,} nonzero",
    )
    usable = "finite and nonzero" if np.isfinite(slope) and slope != 0 else "NOT usable as a gradient"
    demo.report.line("d loss/d fraction", f"{slope:.4g}; {usable}")


def load(demo: Demo) -> None:
    """Run a jitted function on every batch of an epoch."""
    import jax
    import jax.numpy as jnp

    assert demo.pipeline is not None
    compilations = Counter[str]()

    @jax.jit
    def shift(batch: Any) -> jax.Array:
        compilations.update(["shift"])  # runs only while JAX traces the function in order to compile it
        return jnp.mean(batch.counts - batch.controls.mean(axis=1))

    with demo.report.section("Loader"):
        try:
            loader = demo.pipeline.loader("train")
        except EmptyPoolError as error:
            demo.report.skip("loader", str(error))
            return
        start, shapes, n_cells = time.perf_counter(), Counter[Any](), 0
        for _, batch in zip(range(_MAX_BATCHES), loader, strict=False):
            shapes[batch.counts.shape, getattr(batch.controls, "shape", ())] += 1
            n_cells += int((~np.asarray(batch.is_padding)).sum())
            shift(batch).block_until_ready()
        took = time.perf_counter() - start
        for (counts, controls), n in shapes.items():
            demo.report.line("batch", f"counts {counts}, controls {controls} float32: {n:,} batches")
        n_batches, n_compiled = shapes.total(), compilations.total()
        share = "one epoch" if n_batches == len(loader) else f"{n_batches:,} of {len(loader):,} batches of an epoch"
        demo.report.line("read", f"{share}: {n_cells:,} cells in {took:.2f} s, {n_cells / took:,.0f} cells/s")
        demo.report.line("jit", f"the model was compiled {'once' if n_compiled == 1 else f'{n_compiled} times'}")


def run_experiment(demo: Demo) -> None:
    """Write the zero-shot split as a cell-load TOML file, and set up a pipeline from it."""
    path = demo.config.out / "experiment.toml"
    with demo.report.section("Experiment file"):
        assert demo.pipeline is not None
        path.write_text(_toml(demo), encoding="utf-8")
        config = replace(
            demo.pipeline.config, split_mode="random", held_out_perturbations=None, enable_knockdown_filter=False
        )
        result = PerturbationPipeline(config).setup_experiment(load_experiment_config(path))
        demo.report.line("file", path)
        sizes = ", ".join(f"{name} {len(result.splits[name]):,}" for name in SPLITS)
        demo.report.line("splits", f"{sizes} (cell type held out: {demo.held_out_type or 'none'})")


def _toml(demo: Demo) -> str:
    lines = [
        "[datasets]",
        f"screen = {json.dumps(str(demo.store.resolve()))}",
        "",
        "[training]",
        'screen = "train"',
    ]
    if demo.held_out_type is not None:
        lines += ["", "[zeroshot]", f'{json.dumps(f"screen.{demo.held_out_type}")} = "test"']
    return "\n".join([*lines, ""])
