"""Keyword arguments of ``ds.pert.source``, which reads the Dataset's own store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from pathlib import Path


class PerturbationSourceKwargs(TypedDict, total=False):
    """Keyword arguments of `PerturbationSourceConfig`, without `file_path`."""

    pert_col: str
    cell_type_col: str | None
    batch_col: str | None
    control_pert: str
    output_space: str
    hvg_col: str | None
    embedding_key: str | None
    layer: str | None
    should_yield_controls: bool
    additional_obs: tuple[str, ...]
    include_barcodes: bool
    perturbation_features_file: str | Path | None
    cache_dir: str | Path | None
    memory_limit: int | str
    seed: int
    storage_options: dict[str, Any] | None
