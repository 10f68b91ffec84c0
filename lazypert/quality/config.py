"""Options of on-target knockdown quality control."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

from lazypert._internal.config import Config
from lazypert._internal.validation import (
    require,
    require_choice,
    require_flag,
    require_integer,
    require_names,
    require_number,
)
from lazypert.quality.target_map import TargetMap, check_targets

ControlMatch = Literal["all", "cell_type", "batch"]
"""Controls to compare each cell with."""

ContextAxis = Literal["dataset", "cell_type"]
"""What divides cells into contexts."""

Direction = Literal["down", "up", "both"]
"""How the expression of the target has to change."""


@dataclass(frozen=True, kw_only=True, repr=False)
class KnockdownOptions(Config):
    """Options that the filter shares with the pipeline; `KnockdownFilterConfig` explains them."""

    residual_expression: float = 0.30
    cell_residual_expression: float = 0.50
    min_cells: int = 30
    var_gene_col: str | None = None
    layer: str | None = None
    control_match: ControlMatch = "all"
    verdict_by: tuple[ContextAxis, ...] = ()
    direction: Direction = "down"
    normalise_depth: bool = False
    targets: TargetMap | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class KnockdownFilterConfig(KnockdownOptions):
    """Options of `OnTargetKnockdownFilter`; the defaults are those of cell-load.

    Parameters
    ----------
    residual_expression
        Stage 1 keeps a perturbation whose mean residual expression is below this.
    cell_residual_expression
        Stage 2 keeps a cell whose own residual expression is below this.
    min_cells
        Stage 3 drops perturbations with fewer cells left than this.
    var_gene_col
        var column with the gene names used as perturbation labels; None uses the var index.
    layer
        Matrix to read; None reads the layer of the source, which is X unless its config names another.
    control_match
        Controls to compare with: ``"all"`` of them; those of the same dataset and ``"cell_type"``; or
        those of the same dataset, cell type and ``"batch"``. A batch without controls is compared with
        all controls of its dataset and cell type, as in control mapping.
    verdict_by
        Contexts that are judged on their own: ``("dataset",)``, ``("cell_type",)`` or both. Each gives the result of
        a filter of its cells alone, with ``"all"`` meaning all controls of the context. By default, each perturbation
        gets one verdict from all of its cells.
    direction
        ``"down"`` is for knockdown (CRISPRi) and knockout: ratios must be below their limits, as described above.
        ``"up"`` is for activation (CRISPRa): ratios must be above ``1 / residual_expression`` and
        ``1 / cell_residual_expression``. ``"both"`` passes either; a perturbation's mean decides in which
        direction its cells are judged.
    normalise_depth
        Divide each cell's expression by its total over all genes and multiply by 10,000, so that a difference in
        sequencing depth is not taken for a knockdown. Reads the matrix once.
    targets
        Target gene of each label that is not the name of its target: ``{"TP53_sg1": "TP53"}``, or a ``.csv`` or
        ``.tsv`` file with a header, labels in its first column and genes in its second; or the name of an obs column,
        such as ``"gene"``, which all cells of a perturbation agree on; or ``uns["genetic_perturbations"]`` of a file in
        CELLxGENE's schema. Labels of one gene are judged one by one.
        A label may have several genes (a list, or several lines of the file), all of which have to pass, in the same
        cells. A label whose only gene is empty has no target. Genes are looked up in `var_gene_col`, and then in the
        var index.

    Raises
    ------
    ConfigError
        When a value is out of range.
    """

    def __post_init__(self) -> None:
        for name in ("residual_expression", "cell_residual_expression"):
            require_number(name, getattr(self, name), above=0, most=1)
        require_integer("min_cells", self.min_cells, 1)
        require_choice("control_match", self.control_match, ControlMatch)
        require_choice("direction", self.direction, Direction)
        require_flag("normalise_depth", self.normalise_depth)
        check_targets(self.targets)
        axes = tuple(require_names("verdict_by", self.verdict_by))
        for axis in axes:
            require_choice("verdict_by", axis, ContextAxis)
        require(len(set(axes)) == len(axes), "verdict_by", self.verdict_by, "each name once")
        object.__setattr__(self, "verdict_by", axes)


class KnockdownFilterKwargs(TypedDict, total=False):
    """Keyword arguments of `KnockdownFilterConfig`."""

    residual_expression: float
    cell_residual_expression: float
    min_cells: int
    var_gene_col: str | None
    layer: str | None
    control_match: ControlMatch
    verdict_by: tuple[ContextAxis, ...]
    direction: Direction
    normalise_depth: bool
    targets: TargetMap | None
