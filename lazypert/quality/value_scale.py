"""Scale of a matrix's values, and the refusal of values whose ratios mean nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from lazypert.errors import ConfigError, NotCountsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from lazypert.quality.config import KnockdownOptions
    from lazypert.sources.base import PerturbationSource
    from lazypert.store.store import Store

Scale = Literal["counts", "log1p values", "normalised values"]

LARGEST_LOG1P = 15.0  # log1p of 3 million, more than a cell's reads
PER = 10_000
"""Sum that depth-normalised cells are scaled to."""


def scale_of(stats: Mapping[str, Any]) -> Scale:
    """Guess the scale of a matrix from its value statistics."""
    if stats["integral"]:
        return "counts"
    return "log1p values" if stats["maximum"] < LARGEST_LOG1P else "normalised values"


def require_comparable(source: PerturbationSource, config: KnockdownOptions) -> str:
    """Return what the values are, after checking that their means can be divided.

    Raises
    ------
    ConfigError
        If there are negative values; or if datasets that are judged together differ in scale.
    NotCountsError
        If the depth of log1p values is to be normalised.
    """
    matrices = [segment.matrix for segment in source.segments(config.layer)]
    for store, matrix in zip(source.stores, matrices, strict=True):
        if matrix.stats["minimum"] < 0:
            raise ConfigError(
                f"layer: got {config.layer!r}, values from {matrix.stats['minimum']:.4g} on in {matrix.name!r} of "
                f"{store.path!r}; expected no negative values. Ratios of z-scores or other centred values are not "
                f"residual expression. {_advice(store, matrix.name, lambda stats: stats['minimum'] >= 0)}"
            )
    scales = [scale_of(matrix.stats) for matrix in matrices]
    if len(set(scales)) > 1 and "dataset" not in config.verdict_by:
        listed = ", ".join(f"{scale} in {store.path!r}" for store, scale in zip(source.stores, scales, strict=True))
        raise ConfigError(
            f"verdict_by: got {config.verdict_by!r}, but the datasets differ in scale ({listed}), so that their means "
            "cannot be compared. Judge each on its own, with verdict_by=('dataset',), or choose a layer of the same "
            "scale in all of them."
        )
    if not config.normalise_depth:
        return " and ".join(dict.fromkeys(scales))
    if "log1p values" in scales:
        store, matrix = next(
            (s, m) for s, m, scale in zip(source.stores, matrices, scales, strict=True) if scale == "log1p values"
        )
        raise NotCountsError(
            f"normalise_depth: got True with {matrix.name!r} of {store.path!r}, which looks like log1p values (the "
            f"largest is {matrix.stats['maximum']:.4g}), expected counts. log1p values have no total to divide by. "
            f"{_advice(store, matrix.name, lambda stats: scale_of(stats) == 'counts')}"
        )
    return f"counts per {PER:,}" if set(scales) == {"counts"} else f"values per {PER:,}"


def _advice(store: Store, name: str, is_fit: Any) -> str:
    """Which matrix to choose instead."""
    fit = [other for other in _expression_matrices(store) if other != name and is_fit(store.attrs["matrices"][other])]
    if not fit:
        return "Convert the screen again from a file with counts; no other matrix of this store fits."
    layers = [None if other == "X" else other.removeprefix("layers/") for other in fit]
    return f"Choose another matrix: {' or '.join(f'layer={layer!r}' for layer in layers)}."


def _expression_matrices(store: Store) -> Sequence[str]:
    return [name for name in store.matrices if name == "X" or name.startswith("layers/")]
