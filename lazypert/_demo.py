"""The demo: every component on one screen, with the figures that the run itself gives."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.files import directory_size
from lazypert._internal.memory import format_bytes
from lazypert._internal.randomness import generator
from lazypert._internal.validation import require_integer
from lazypert.conversion.convert import convert
from lazypert.converter import open_source
from lazypert.dataset.open import open as open_dataset
from lazypert.design.controls import BatchControlMapping, ControlMappingConfig, RandomControlMapping
from lazypert.design.experiment import ExperimentConfig, load_experiment_config
from lazypert.design.splits import (
    SPLITS,
    FewShotSplitter,
    FewShotSplitterConfig,
    RandomSplitter,
    RandomSplitterConfig,
    SplitResult,
    ZeroShotSplitter,
    ZeroShotSplitterConfig,
)
from lazypert.errors import EmptyPoolError
from lazypert.pipeline import PerturbationPipeline, PerturbationPipelineConfig, PerturbationPipelineResult
from lazypert.plots import downsampling_sweep, plot_downsampling, plot_knockdown, plot_splits, sample_cell_residuals
from lazypert.quality import KnockdownFilterConfig, KnockdownResult, OnTargetKnockdownFilter
from lazypert.sources.anndata_source import PerturbationAnnDataSource
from lazypert.sources.config import PerturbationSourceConfig
from lazypert.store.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from lazypert.store.matrix import Matrix

REFERENCE = "reference-screen.h5ad"
PICTURES = {"splits": "splits.png", "knockdown": "knockdown.png", "downsampling": "downsampling.png"}
FRACTIONS = (1.0, 0.75, 0.5, 0.25, 0.1)

_WIDTH = 92
_MAX_LINES = 12  # of a table, before "... more"
_MAX_CELLS, _MAX_DENSE_BYTES = 2_000, 32 * 1024**2  # of the cells that are downsampled
_MAX_BATCHES = 400  # of the loader, so that a large screen takes no hours
_SENTENCE_SIZE, _SENTENCES_PER_BATCH = 16, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """Options of `run_demo`.

    Parameters
    ----------
    out
        Folder for the store and the pictures; made if need be. What an earlier demo left there is replaced.
    h5ad
        A screen; None simulates the reference screen.
    pert_col, control_pert
        obs column of the perturbation, and the label of its controls.
    cell_type_col, batch_col
        obs columns; None takes ``"cell_type"`` and ``"batch"`` where the file has them.
    var_gene_col
        var column of the gene names that perturbations are named for; None takes the var index.
    seed
        Decides everything that is drawn.
    """

    out: Path = Path("lazypert-demo")
    h5ad: Path | None = None
    pert_col: str = "perturbation"
    control_pert: str = "non-targeting"
    cell_type_col: str | None = None
    batch_col: str | None = None
    var_gene_col: str | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        require_integer("seed", self.seed)


def run_demo(config: DemoConfig) -> list[Path]:
    """Run every component on a screen, print what came out, and draw it.

    Whatever the screen cannot do is skipped, and the report says why. Memory stays bounded: beside
    tables with one number a cell, only blocks and a few thousand sampled cells are held.

    Returns
    -------
    Paths of the pictures.
    """
    demo = _Demo(config, _Report())
    for part in (
        demo.make_screen,
        demo.open_screen,
        demo.split,
        demo.filter_knockdown,
        demo.build_sentences,
        demo.match_controls,
        demo.downsample,
        demo.load,
        demo.run_experiment,
    ):
        part()
    return demo.draw()


class _Report:
    """Prints sections with aligned columns, each with the time it took."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    @contextmanager
    def section(self, title: str) -> Iterator[None]:
        start, self._lines = time.perf_counter(), []
        try:
            yield
        finally:
            took = f" {time.perf_counter() - start:.2f} s"
            print(f"\n{title} ".ljust(_WIDTH + 1 - len(took), "-") + took)
            print(*self._lines, sep="\n", flush=True)

    def line(self, name: str, value: object) -> None:
        self._lines.append(f"  {name:<19}{value}")

    def skip(self, what: str, why: str) -> None:
        self.line(what, f"skipped: {why}")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print rows; columns of numbers are aligned to the right."""
        texts = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
        widths = [max(len(text) for text in column) for column in zip(head, *texts, strict=True)]
        right = [all(not isinstance(row[i], str) or _is_number(row[i]) for row in rows) for i in range(len(head))]
        for cells in [list(head), *texts]:
            done = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)]
            self._lines.append(f"  {'  '.join(done)}".rstrip())


def _is_number(cell: object) -> bool:
    with suppress(ValueError):
        float(str(cell).replace(",", "").replace("%", ""))
        return True
    return cell == "-"


@dataclass
class _Demo:
    """The state that the parts share; each part is one section of the report."""

    config: DemoConfig
    report: _Report
    path: Path = Path()
    store: Path = Path()
    splits: dict[str, SplitResult] = field(default_factory=dict)
    knockdown: KnockdownResult | None = None
    pipeline: PerturbationPipelineResult | None = None
    figures: dict[str, Callable[[], Figure]] = field(default_factory=dict)
    held_out_type: str | None = None

    # -- the screen ---------------------------------------------------------------------------------

    def make_screen(self) -> None:
        """Simulate the reference screen, or look at the file that was given; convert it."""
        with self.report.section("Conversion"):
            self.config.out.mkdir(parents=True, exist_ok=True)
            if self.config.h5ad is None:
                from lazypert.simulate import reference_screen

                self.path = reference_screen(self.config.out / REFERENCE, seed=self.config.seed, overwrite=True)
                self.config = replace(
                    self.config, cell_type_col="cell_type", batch_col="batch", var_gene_col="gene_name"
                )
                self.report.line("simulated", f"{self.path} ({format_bytes(self.path.stat().st_size)})")
            else:
                self.path = self.config.h5ad
                self.config = self._with_columns(open_source(self.path).obs_columns)
                self.report.line("file", f"{self.path} ({format_bytes(self.path.stat().st_size)})")
            self.store = self.config.out / f"{self.path.name.removesuffix('.h5ad')}.lazypert.zarr"
            self._convert()
            n_files = verify(self.store)
            self.report.line("verified", f"ok: {n_files} files, every byte as it was written")

    def _with_columns(self, columns: Sequence[str]) -> DemoConfig:
        """Take the usual names of columns that were not named, where the file has them."""
        usual = {name: name.removesuffix("_col") for name in ("cell_type_col", "batch_col")}
        open_names = {name: column for name, column in usual.items() if getattr(self.config, name) is None}
        found: dict[str, Any] = {name: column for name, column in open_names.items() if column in columns}
        for name in open_names.keys() - found.keys():
            option = f"--{name.replace('_', '-')}"
            self.report.line(
                usual[name].replace("_", " "), f"none: no obs column {usual[name]!r}; name one with {option}"
            )
        return replace(self.config, **found)

    def _convert(self) -> None:
        start = time.perf_counter()
        convert(
            self.path,
            self.store,
            pert_col=self.config.pert_col,
            control_pert=self.config.control_pert,
            cell_type_col=self.config.cell_type_col,
            batch_col=self.config.batch_col,
            seed=self.config.seed,
            overwrite=True,
        )
        size, took = directory_size(self.store), time.perf_counter() - start
        self.report.line("store", f"{self.store} ({format_bytes(size)}, written in {took:.2f} s)")

    @cached_property
    def source(self) -> PerturbationAnnDataSource:
        """The store as a source."""
        return PerturbationAnnDataSource(
            PerturbationSourceConfig(
                file_path=self.store,
                pert_col=self.config.pert_col,
                control_pert=self.config.control_pert,
                cell_type_col=self.config.cell_type_col,
                batch_col=self.config.batch_col,
                seed=self.config.seed,
            )
        )

    def open_screen(self) -> None:
        """Open the store, and say what the screen is."""
        from dask.callbacks import Callback

        tasks = Counter[str]()
        with self.report.section("Screen"):
            start = time.perf_counter()
            with Callback(pretask=lambda *_: tasks.update(["run"])):
                ds = open_dataset(self.store)
            took = 1000 * (time.perf_counter() - start)
            by_cell = [v for v in ds.variables.values() if "cell" in v.dims]
            lazy = sum(hasattr(v.data, "dask") for v in by_cell)
            self.report.line(
                "xarray.Dataset",
                f"lazy: {lazy} of {len(by_cell)} variables with a cell axis are Dask arrays; "
                f"opened in {took:.0f} ms, {tasks['run']} tasks run",
            )
            x, matrix = ds["X"], self.source.matrix
            self.report.line(
                "X",
                f"{type(x.data).__module__.partition('.')[0]} {type(x.data).__name__} {x.shape} {x.dtype}: "
                f"{format_bytes(x.nbytes)} dense, in {x.data.npartitions} block{'s' * (x.data.npartitions > 1)}; "
                f"{matrix.stats['nnz']:,} nonzeros as {matrix.dtype}",
            )
            self._describe_groups()

    def _describe_groups(self) -> None:
        groups, say = self.source.groups, self.report.line
        table = groups.table()
        sizes = table["n_cells"]
        say("cells", f"{groups.n_obs:,}" + (f" ({groups.n_unlabelled:,} unlabelled)" if groups.n_unlabelled else ""))
        say("genes", f"{self.source.get_n_genes():,}")
        if self.config.cell_type_col is not None:
            names = self.source.get_cell_type_categories()
            say("cell types", f"{len(names):,} ({_listed(names)})")
        say("perturbations", f"{len(self.source.get_pert_categories()):,}, {self.config.control_pert!r} among them")
        say("controls", f"{int(self.source.get_control_mask().sum()):,}")
        if self.config.batch_col is not None:
            say("batches", f"{len(self.source.get_batch_categories()):,}")
        each = f"of {sizes.min():,} cells" if sizes.nunique() == 1 else f"of {sizes.min():,} to {sizes.max():,} cells"
        say("groups", f"{len(groups):,} {each}")

    # -- splits and quality control -----------------------------------------------------------------

    def split(self) -> None:
        """Hold out a cell type, then perturbations; and split at random."""
        groups, rows = self.source.groups, []
        sizes = groups.table().groupby("cell_type")["n_cells"].sum()
        with self.report.section("Splits"):
            if len(sizes) < 2:
                self.report.skip("zero-shot", "the screen has one cell type, so none can be held out")
            else:
                self.held_out_type = "Microglia" if self.config.h5ad is None else str(sizes.idxmin())
                zero = ZeroShotSplitterConfig(held_out_cell_types=(self.held_out_type,), seed=self.config.seed)
                rows.append(self._split("zero-shot", self.held_out_type, ZeroShotSplitter(zero)))
            held = self.held_out_perturbations
            if not held:
                self.report.skip("few-shot", "it needs at least two perturbations beside the controls")
            else:
                few = FewShotSplitterConfig(held_out_perturbations=held, seed=self.config.seed)
                rows.append(self._split("few-shot", ", ".join(held), FewShotSplitter(few)))
            drawn = dict(self.splits)
            rows.append(self._split("random", "-", RandomSplitter(RandomSplitterConfig(seed=self.config.seed))))
            self.report.table(["split", "held out", "train", "valid", "test", "sum", "of"], rows)
        self.figures["splits"] = lambda: plot_splits(groups, drawn)

    def _split(self, name: str, held_out: str, splitter: Any) -> list[object]:
        result = splitter.split(self.source)
        self.splits[f"{name}, {held_out} held out"] = result
        counts = [len(result[part]) for part in SPLITS]
        return [name, held_out, *counts, sum(counts), self.source.groups.n_obs]

    @cached_property
    def held_out_perturbations(self) -> tuple[str, ...]:
        """Two perturbations, by the seed; those of the reference screen are always the same."""
        if self.config.h5ad is None:
            return ("BRCA1", "TP53")
        table = self.source.groups.table()
        names = sorted(set(table["perturbation"][~table["is_control"]]))
        n = min(2, len(names) - 1)
        if n < 1:
            return ()
        return tuple(sorted(generator(self.config.seed).choice(names, n, replace=False).tolist()))

    def filter_knockdown(self) -> None:
        """Ask of every perturbation whether its target went down."""
        config = KnockdownFilterConfig(var_gene_col=self.config.var_gene_col)
        with self.report.section("Knockdown quality control"):
            self.knockdown = result = OnTargetKnockdownFilter(config).run(self.source)
            table = result.table.sort_values("residual_expression", kind="stable")
            shown = table[np.isfinite(table["residual_expression"])].head(_MAX_LINES)
            units = "counts" if self.source.matrix.is_counts else "values (X holds no counts)"
            self.report.line(
                "residual",
                f"mean {units} of the target in its cells / in controls; passes below {config.residual_expression:g}",
            )
            rows = [
                [
                    line.perturbation,
                    line.n_cells,
                    f"{line.residual_expression:.3f}",
                    line.n_kept,
                    line.reason,
                ]
                for line in shown.itertuples()
            ]
            if rows:
                self.report.table(["perturbation", "cells", "residual", "kept", "why"], rows)
            rest = Counter(text.partition(" (")[0] for text in table["reason"].iloc[len(shown) :])
            for reason, n in rest.most_common():
                self.report.line(f"{n:,} more", reason)
            self.report.line(
                "passed",
                f"{int(table['passed'].sum()):,} of {len(table):,} perturbations; {int(result.mask.sum()):,} of "
                f"{len(result.mask):,} cells (controls always pass)",
            )
        self.figures["knockdown"] = lambda: plot_knockdown(
            result,
            config=config,
            cell_residuals=sample_cell_residuals(
                self.source, result, var_gene_col=self.config.var_gene_col, seed=self.config.seed
            ),
            units="counts" if self.source.matrix.is_counts else "expression",
        )

    # -- sentences and controls ---------------------------------------------------------------------

    def build_sentences(self) -> None:
        """Run through an epoch of the pipeline's training sampler, and check each sentence."""
        with self.report.section("Sentences"):
            self.pipeline = result = self._pipeline()
            self.report.line("pipeline", f"{self._pipeline_says(result)}")
            codes, train = self.source.get_group_codes(), result.train_indices
            seen = np.zeros(len(train), dtype=bool)
            n_sentences = n_impure = n_batches = 0
            for places in result.train_sampler:
                cells = codes[train[np.array(places)]].reshape(-1, _SENTENCE_SIZE)
                seen[places] = True
                n_batches += 1
                n_sentences += len(cells)
                n_impure += int((cells != cells[:, :1]).any(axis=1).sum())
            self.report.line("epoch", f"{n_batches:,} batches of up to {_SENTENCES_PER_BATCH} sentences")
            self.report.line(
                "purity", f"{n_sentences:,} sentences of {_SENTENCE_SIZE} cells checked, {n_impure} impure"
            )
            self.report.line("coverage", f"{int(seen.sum()):,} of {len(train):,} training cells visited")
            if len(train):
                self._show_element(result.get_element(train[0]))

    def _pipeline(self) -> PerturbationPipelineResult:
        """Set the pipeline up over all its parts; without QC if that would leave controls only."""
        assert self.knockdown is not None
        passes = bool(self.knockdown.table["passed"].any())
        config = PerturbationPipelineConfig(
            pert_col=self.config.pert_col,
            cell_type_col=self.config.cell_type_col,
            batch_col=self.config.batch_col,
            control_pert=self.config.control_pert,
            split_mode="fewshot" if self.held_out_perturbations else "random",
            held_out_perturbations=self.held_out_perturbations,
            sentence_size=_SENTENCE_SIZE,
            sentences_per_batch=_SENTENCES_PER_BATCH,
            enable_knockdown_filter=passes,
            var_gene_col=self.config.var_gene_col,
            cache_dir=self.config.out,
            seed=self.config.seed,
        )
        return PerturbationPipeline(config).setup(self.store)

    def _pipeline_says(self, result: PerturbationPipelineResult) -> str:
        quality = "after QC" if result.filter_mask is not None else "without QC, which passes no perturbation"
        sizes = ", ".join(f"{part} {len(result.splits[part]):,}" for part in SPLITS)
        return f"{result.config.split_mode}, {quality}: {sizes}"

    def _show_element(self, element: dict[str, Any]) -> None:
        columns = {"cell_type": self.config.cell_type_col, "pert": self.config.pert_col, "batch": self.config.batch_col}
        labels = [element[f"{name}_name"] for name, column in columns.items() if column is not None]
        counts = element["counts"]
        self.report.line("an element", f"counts {counts.shape} {counts.dtype}; {' / '.join(map(str, labels))}")

    def match_controls(self) -> None:
        """Match every perturbed cell with controls, and check each pair."""
        with self.report.section("Matched controls"):
            config = ControlMappingConfig(seed=self.config.seed, on_empty="mask")
            rows = [self._check_pairs(RandomControlMapping(config))]
            if self.config.batch_col is None:
                self.report.skip("batch strategy", "the screen has no batch column")
            else:
                rows.append(self._check_pairs(BatchControlMapping(replace(config, strategy="batch"))))
            head = [
                "strategy",
                "pairs checked",
                "of another cell type",
                "no control",
                "same batch",
                "without a control",
            ]
            self.report.table(head, rows)

    def _check_pairs(self, mapping: RandomControlMapping | BatchControlMapping) -> list[object]:
        cells, controls = mapping.mapped_rows(self.source), mapping.build_mapping(self.source)
        has_control = ~np.ma.getmaskarray(controls)[:, 0]
        cells, matched = cells[has_control], np.asarray(controls)[has_control, 0]
        cell_type, batch = self.source.get_cell_type_codes(), self.source.get_batch_codes()
        same_batch = f"{np.mean(batch[cells] == batch[matched]):.1%}" if self.config.batch_col and len(cells) else "-"
        return [
            mapping.strategy,
            len(cells),
            int((cell_type[cells] != cell_type[matched]).sum()),
            int((~self.source.get_control_mask()[matched]).sum()),
            same_batch,
            int((~has_control).sum()),
        ]

    # -- downsampling -------------------------------------------------------------------------------

    def downsample(self) -> None:
        """Thin reads, and differentiate through it."""
        with self.report.section("Downsampling"):
            matrix, layer = self._counts()
            if matrix is None:
                facts = self.source.matrix.stats
                self.report.skip(
                    "downsampling",
                    f"only raw counts can be thinned, and X holds other values (minimum {facts['minimum']:g}, "
                    f"maximum {facts['maximum']:g}, {'whole' if facts['integral'] else 'not whole'})",
                )
                return
            counts = self._sampled_controls(matrix, layer)
            if not counts.any():
                self.report.skip("downsampling", "the sampled controls have no reads")
                return
            import jax

            sweep = downsampling_sweep(counts, FRACTIONS, key=jax.random.key(self.config.seed))
            genes = np.median(sweep.genes, axis=1)
            rows = [
                [f"{f:.2f}", int(kept), f"{kept / sweep.total:.4f}", f"{n:.0f}"]
                for f, kept, n in zip(sweep.fractions, sweep.reads, genes, strict=True)
            ]
            self.report.table(["fraction", "reads", "of all reads", "genes detected (median)"], rows)
            self._differentiate(counts)
        self.figures["downsampling"] = lambda: plot_downsampling(sweep)

    def _counts(self) -> tuple[Matrix | None, str | None]:
        """Find the matrix of raw counts: X, or the first layer that holds counts."""
        store = self.source.store
        for name in store.matrices:
            if not name.startswith("obsm/") and store.sparse(name).is_counts:
                return store.sparse(name), name.removeprefix("layers/") if name != "X" else None
        return None, None

    def _sampled_controls(self, matrix: Matrix, layer: str | None) -> NDArray[np.float32]:
        groups = self.source.groups
        controls = groups.rows(groups.is_control & (groups.ids >= 0))
        n = min(len(controls), _MAX_CELLS, max(1, _MAX_DENSE_BYTES // (4 * matrix.shape[1])))
        rows = np.sort(controls[np.sort(generator(self.config.seed, 1).choice(len(controls), n, replace=False))])
        source = self.source
        if layer is not None:
            source = PerturbationAnnDataSource(replace(source.config, layer=layer))
        where = "X" if layer is None else f"layer {layer!r}, as X holds no counts"
        self.report.line("cells", f"{n:,} of {len(controls):,} controls, from {where}")
        counts: NDArray[np.float32] = source.batch(rows)["counts"]
        return counts

    def _differentiate(self, counts: NDArray[np.float32]) -> None:
        import jax
        import jax.numpy as jnp

        from lazypert.downsampling.downsampler import ReadDownsampler

        thin, key = ReadDownsampler(), jax.random.key(self.config.seed)

        def loss(reads: jax.Array, fraction: jax.Array) -> jax.Array:
            return jnp.mean(jnp.log1p(thin(reads, key=key, fraction=fraction)))

        by_counts, by_fraction = jax.grad(loss, argnums=(0, 1))(jnp.asarray(counts), jnp.asarray(0.5))
        flat = np.asarray(by_counts, dtype=np.float64)
        finite = f"{int(np.isfinite(flat).sum()):,} of {flat.size:,} finite, {np.count_nonzero(flat):,} not zero"
        self.report.line("loss", "mean log1p of the thinned reads, at fraction 0.5")
        self.report.line("d loss/d counts", f"norm {np.linalg.norm(flat):.4g}; {finite}")
        slope = float(by_fraction)
        is_good = "finite, not zero" if np.isfinite(slope) and slope != 0 else "NOT a usable gradient"
        self.report.line("d loss/d fraction", f"{slope:.4g}; {is_good}")

    # -- the loader ---------------------------------------------------------------------------------

    def load(self) -> None:
        """Run a jitted function over an epoch of the loader."""
        import jax
        import jax.numpy as jnp

        assert self.pipeline is not None
        traced = Counter[str]()

        @jax.jit
        def shift(batch: Any) -> jax.Array:
            traced.update(["shift"])  # runs when JAX compiles, and at no other time
            return jnp.mean(batch.counts - batch.controls.mean(axis=1))

        with self.report.section("Loader"):
            try:
                loader = self.pipeline.loader("train")
            except EmptyPoolError as error:
                self.report.skip("loader", str(error))
                return
            start, shapes, n_cells = time.perf_counter(), Counter[Any](), 0
            for _, batch in zip(range(_MAX_BATCHES), loader, strict=False):
                shapes[batch.counts.shape, getattr(batch.controls, "shape", ())] += 1
                n_cells += int((~np.asarray(batch.is_padding)).sum())
                shift(batch).block_until_ready()
            took = time.perf_counter() - start
            for (counts, controls), n in shapes.items():
                self.report.line("batch", f"counts {counts}, controls {controls} float32: {n:,} batches")
            n_batches = shapes.total()
            part = "one epoch" if n_batches == len(loader) else f"{n_batches:,} of {len(loader):,} batches of an epoch"
            self.report.line("read", f"{part}: {n_cells:,} cells in {took:.2f} s, {n_cells / took:,.0f} cells/s")
            self.report.line("jit", f"the model was compiled {_times(traced['shift'])}")

    def run_experiment(self) -> None:
        """Write the same hold-outs as a cell-load TOML file, and set up from it."""
        toml = self.config.out / "experiment.toml"
        with self.report.section("Experiment file"):
            assert self.pipeline is not None
            toml.write_text(self._toml(), encoding="utf-8")
            experiment: ExperimentConfig = load_experiment_config(toml)
            config = replace(
                self.pipeline.config, split_mode="random", held_out_perturbations=(), enable_knockdown_filter=False
            )
            result = PerturbationPipeline(config).setup_experiment(experiment)
            self.report.line("file", toml)
            sizes = ", ".join(f"{part} {len(result.splits[part]):,}" for part in SPLITS)
            self.report.line("splits", f"{sizes} (cell type held out: {self.held_out_type or 'none'})")

    def _toml(self) -> str:
        import json

        lines = [
            "[datasets]",
            f"screen = {json.dumps(str(self.store.resolve()))}",
            "",
            "[training]",
            'screen = "train"',
        ]
        if self.held_out_type is not None:
            lines += ["", "[zeroshot]", f'{json.dumps(f"screen.{self.held_out_type}")} = "test"']
        return "\n".join([*lines, ""])

    # -- pictures -----------------------------------------------------------------------------------

    def draw(self) -> list[Path]:
        """Draw what there is to draw; a picture that was left by an earlier demo and is not drawn now goes."""
        paths = []
        with self.report.section("Pictures"):
            for name, file in PICTURES.items():
                path = self.config.out / file
                path.unlink(missing_ok=True)
                if name not in self.figures:
                    self.report.skip(name, "see above")
                    continue
                figure = self.figures[name]()
                figure.savefig(path)
                paths.append(path)
                self.report.line(name, path)
        return paths


def _listed(names: Sequence[Any] | NDArray[Any], n: int = 6) -> str:
    shown = ", ".join(map(str, names[:n]))
    return shown if len(names) <= n else f"{shown}, ..."


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"
