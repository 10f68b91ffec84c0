"""Options of the demo, and the state that its sections share."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lazypert._internal.randomness import generator
from lazypert._internal.validation import require_integer
from lazypert.sources.anndata_source import PerturbationAnnDataSource
from lazypert.sources.config import PerturbationSourceConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

    from lazypert._demo.report import Report
    from lazypert.pipeline_result import PerturbationPipelineResult
    from lazypert.quality import KnockdownResult
    from lazypert.splits.split_result import SplitResult


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """Options of `run_demo`.

    Parameters
    ----------
    out
        Directory of the store and the figures, created if necessary. Files of an earlier demo are replaced.
    h5ad
        The screen; None simulates the reference screen.
    pert_col, control_pert
        obs column of the perturbation, and the label of its controls.
    cell_type_col, batch_col
        obs columns; None uses ``"cell_type"`` and ``"batch"`` if the file has them.
    var_gene_col
        var column with the gene names used as perturbation labels; None uses the var index.
    seed
        Seed of all random choices.
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


@dataclass
class Demo:
    """State that the sections of the demo share."""

    config: DemoConfig
    report: Report
    store: Path = Path()
    splits: dict[str, SplitResult] = field(default_factory=dict)
    knockdown: KnockdownResult | None = None
    pipeline: PerturbationPipelineResult | None = None
    figures: dict[str, Callable[[], Figure]] = field(default_factory=dict)
    held_out_type: str | None = None

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

    @cached_property
    def held_out_perturbations(self) -> tuple[str, ...]:
        """Two random perturbations; for the reference screen, always the same two."""
        if self.config.h5ad is None:
            return ("BRCA1", "TP53")
        table = self.source.groups.table()
        names = sorted(set(table["perturbation"][~table["is_control"]]))
        n_held_out = min(2, len(names) - 1)
        if n_held_out < 1:
            return ()
        return tuple(sorted(generator(self.config.seed).choice(names, n_held_out, replace=False).tolist()))
