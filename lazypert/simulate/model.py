"""Model of a simulated screen: draws expression, dispersion, depth, effects and design."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lazypert._internal.randomness import generator
from lazypert._internal.validation import require
from lazypert.simulate.constants import (
    ALPHA_CONST,
    ALPHA_LOG_SD,
    ALPHA_OVER_MEAN,
    BATCH_LOG_SD,
    CP10K_LOG10_MEAN,
    CP10K_LOG10_SD,
    DENSITY,
    DEPTH_LOG_MEAN,
    DEPTH_LOG_SD,
    GUIDES_PER_TARGET,
    MARKER_LOG2_SD,
    MARKER_SHARE,
    ON_TARGET_LOG2,
    SHIFT_LOG2_SD,
    STRONG_SHARE,
    STRONG_TARGETS,
    TARGET_LOG_SD,
    TYPE_DIRICHLET,
    UNASSIGNED,
    WEAK_SHARE,
    numbered_names,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.simulate.config import SimulationConfig


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Design:
    """Distribution of the cells' labels."""

    labels: list[str]  # perturbation categories, sorted
    label_target: NDArray[np.int64]  # (label,), -1 where nothing is perturbed
    guides: list[str]
    guide_start: NDArray[np.int64]  # (label + 1,), offsets into guides
    group_ends: NDArray[np.float64]  # (cell_type * label,), cumulative shares of groups, or cumulative cells


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Model:
    """All parameters that are drawn before the first cell."""

    gene_names: list[str]
    highly_variable: NDArray[np.bool_]  # (gene,)
    profile: NDArray[np.float32]  # (cell_type, gene), rows sum to 1
    batch: NDArray[np.float32]  # (batch, gene), factors
    alpha: NDArray[np.float32]  # (gene,), dispersion
    depth_log_mean: float  # natural log of reads
    targets: NDArray[np.int64]  # (target,), gene indices in ascending order
    on_target_log2: NDArray[np.float64]  # (target,)
    effect_start: NDArray[np.int64]  # (target + 1,), offsets into the next two
    effect_gene: NDArray[np.int32]
    effect_fold: NDArray[np.float32]
    design: Design


def build_model(config: SimulationConfig) -> Model:
    """Draw the parameters of a screen from its seed."""
    rng = generator(config.seed, 0)
    names = numbered_names("Gene_{:0{}d}", range(config.n_genes), config.n_genes, min_width=4)
    require(config.control_pert not in names, "control_pert", config.control_pert, "a label that is not a gene name")
    shape = (len(config.cell_types), config.n_genes)
    expression = 10 ** rng.normal(CP10K_LOG10_MEAN, CP10K_LOG10_SD, config.n_genes)
    markers = rng.normal(0, MARKER_LOG2_SD, shape) * (rng.random(shape) < MARKER_SHARE)
    profile = expression * np.exp2(markers)
    profile /= profile.sum(axis=1, keepdims=True)
    type_share = rng.dirichlet(np.full(shape[0], TYPE_DIRICHLET))
    noise = rng.lognormal(0, ALPHA_LOG_SD, config.n_genes)
    depth_log_mean = _depth_for(expected_nnz(config), profile, type_share, noise)
    means = profile * _mean_depth(depth_log_mean)
    alpha = _dispersion(type_share @ means, noise)
    # Targets are expressed genes, as in real libraries.
    expressed = np.argsort(-expression, kind="stable")[: max(config.n_targets, config.n_genes // 2)]
    targets = np.sort(rng.choice(expressed, config.n_targets, replace=False))
    on_target = rng.uniform(*ON_TARGET_LOG2, config.n_targets)
    start, gene, fold = draw_effects(rng, targets, on_target, config.n_genes)
    return Model(
        gene_names=names,
        highly_variable=_most_variable(means, alpha, type_share),
        profile=profile.astype(np.float32),
        batch=rng.lognormal(0, BATCH_LOG_SD, (config.n_batches, config.n_genes)).astype(np.float32),
        alpha=alpha.astype(np.float32),
        depth_log_mean=depth_log_mean,
        targets=targets,
        on_target_log2=on_target,
        effect_start=start,
        effect_gene=gene,
        effect_fold=fold,
        design=_draw_design(rng, [names[target] for target in targets], type_share, config),
    )


def expected_nnz(config: SimulationConfig) -> float:
    """Return the expected number of genes detected per cell."""
    return DENSITY * config.n_genes if config.nnz_per_cell is None else config.nnz_per_cell


def _mean_depth(log_mean: float) -> float:
    return math.exp(log_mean + DEPTH_LOG_SD**2 / 2)


def _dispersion(mean: NDArray[np.float64], noise: NDArray[np.float64]) -> NDArray[np.float64]:
    return (ALPHA_CONST + ALPHA_OVER_MEAN / mean) * noise


def _depth_for(
    nnz: float, profile: NDArray[np.float64], type_share: NDArray[np.float64], noise: NDArray[np.float64]
) -> float:
    """Return the log-mean of the depth at which a cell has `nnz` detected genes on average.

    A gene of mean m is detected with probability ``1 - (1 + alpha m) ** (-1 / alpha)``. The mean over the
    lognormal depth is computed by Gauss-Hermite quadrature. Batch and perturbation effects are ignored,
    because they average to about 1.
    """
    from scipy.optimize import brentq

    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    weights /= weights.sum()

    def excess(log_mean: float) -> float:
        alpha = _dispersion(type_share @ profile * _mean_depth(log_mean), noise)
        detected = 0.0
        for share, row in zip(type_share, profile, strict=True):
            for node, weight in zip(nodes, weights, strict=True):
                mean = math.exp(log_mean + DEPTH_LOG_SD * node) * row
                detected += share * weight * -np.expm1(-np.log1p(alpha * mean) / alpha).sum()
        return float(detected - nnz)

    # The measured depth is for about 18,000 genes; the bracket reaches a factor of e**30 below and above it.
    return float(brentq(excess, DEPTH_LOG_MEAN - 30, DEPTH_LOG_MEAN + 30, xtol=1e-3))


def draw_effects(
    rng: np.random.Generator, targets: NDArray[np.int64], on_target: NDArray[np.float64], n_genes: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """Draw the affected genes and fold changes of each target: first its own gene, then those that it shifts."""
    strong = rng.random(len(targets)) < STRONG_TARGETS
    shares = np.where(strong, rng.uniform(*STRONG_SHARE, len(targets)), rng.uniform(*WEAK_SHARE, len(targets)))
    genes, logs = [], []
    for target, own, share in zip(targets, on_target, shares, strict=True):
        shifted = rng.choice(n_genes, round(share * n_genes), replace=False)
        shifted = shifted[shifted != target]
        genes.append(np.concatenate([[target], shifted]))
        logs.append(np.concatenate([[own], rng.normal(0, SHIFT_LOG2_SD, len(shifted))]))
    start = np.cumsum([0, *(len(row) for row in genes)], dtype=np.int64)
    return start, np.concatenate(genes).astype(np.int32), np.exp2(np.concatenate(logs)).astype(np.float32)


def _most_variable(
    means: NDArray[np.float64], alpha: NDArray[np.float64], type_share: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Mark a fifth of the genes, at most 2,000: those with the largest variance-to-mean ratio in the model."""
    mean = type_share @ means
    variance = mean + type_share @ (alpha * means**2) + type_share @ (means - mean) ** 2
    marked = np.zeros(len(mean), dtype=bool)
    marked[np.argsort(-variance / mean, kind="stable")[: max(1, min(2000, len(mean) // 5))]] = True
    return marked


def _draw_design(
    rng: np.random.Generator, targets: list[str], type_share: NDArray[np.float64], config: SimulationConfig
) -> Design:
    """Draw guides and group sizes, as shares if the order is random or numbers of cells if it is grouped."""
    n_guides = dict(zip(targets, rng.integers(*GUIDES_PER_TARGET, len(targets), endpoint=True), strict=True))
    weights = np.array(list(n_guides.values())) * rng.lognormal(0, TARGET_LOG_SD, len(targets))
    perturbed = 1 - config.control_fraction - config.unassigned_fraction
    share = dict(zip(targets, perturbed * weights / weights.sum(), strict=True))
    if config.control_fraction:
        share[config.control_pert] = config.control_fraction
        # Enough control guides that each has about as many cells as a targeting guide.
        per_guide = perturbed / sum(n_guides.values())
        n_guides[config.control_pert] = max(GUIDES_PER_TARGET[0], round(config.control_fraction / per_guide))
    if config.unassigned_fraction:
        share[UNASSIGNED], n_guides[UNASSIGNED] = config.unassigned_fraction, 1
    labels = sorted(share)
    guides = []
    for label in labels:
        guide_names = [f"{label}_g{guide + 1}" for guide in range(n_guides[label])]
        guides += [UNASSIGNED] if label == UNASSIGNED else guide_names
    groups = np.outer(type_share, [share[label] for label in labels]).ravel()
    if config.order == "grouped":
        groups = rng.multinomial(config.n_cells, groups / groups.sum()).astype(np.float64)
    target_index = {target: index for index, target in enumerate(targets)}
    return Design(
        labels=labels,
        label_target=np.array([target_index.get(label, -1) for label in labels]),
        guides=guides,
        guide_start=np.cumsum([0, *(n_guides[label] for label in labels)]),
        group_ends=np.cumsum(groups),
    )
