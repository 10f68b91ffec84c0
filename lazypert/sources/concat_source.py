"""Several screens as one: under one vocabulary, with their genes aligned."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.names import unique_names
from lazypert._internal.validation import require
from lazypert.errors import ConfigError
from lazypert.screen.genes import align_genes
from lazypert.screen.groups import Groups
from lazypert.sources.aligned_matrix import AlignedMatrix
from lazypert.sources.base import PerturbationSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from lazypert.sources.anndata_source import PerturbationAnnDataSource
    from lazypert.sources.matrix_segment import MatrixSegment
    from lazypert.store.matrix import Matrix
    from lazypert.store.store import Store


class PerturbationConcatSource(PerturbationSource):
    """Several screens, one after another, under one vocabulary.

    Labels are united and genes are aligned by name in the var index. Each screen counts as a dataset of its
    own, so controls are matched within it.

    Parameters
    ----------
    sources
        Screens with the same roles and output space.
    join
        ``"inner"`` keeps the genes that all screens measured; ``"outer"`` keeps every gene, zero where a screen
        lacks it.
    names
        Dataset names; by default the file stems, numbered where they repeat.

    Raises
    ------
    ConfigError
        When the sources differ in a role, or the names are not unique.
    """

    def __init__(
        self, sources: Sequence[PerturbationAnnDataSource], *, join: str = "inner", names: Sequence[str] | None = None
    ) -> None:
        if not sources:
            raise ConfigError("sources: got an empty list, expected at least one source.")
        for name in ("control_pert", "output_space", "layer", "embedding_key", "hvg_col", "additional_obs"):
            given = [getattr(source.config, name) for source in sources]
            require(all(value == given[0] for value in given), f"sources differ in {name}", given, "the same in all")
        self.sources = tuple(sources)
        self.config = sources[0].config
        self.names = tuple(names) if names is not None else unique_names([_stem(source) for source in sources])
        is_unique = len(self.names) == len(set(self.names)) == len(sources)
        require(is_unique, "names", self.names, f"{len(sources)} different names, one per source")
        self._genes = align_genes([source.var for source in sources], self.names, join)
        self._matrix = AlignedMatrix(self.matrices, self._genes)
        self._segments = self._matrix.segments

    def __repr__(self) -> str:
        return f"PerturbationConcatSource({', '.join(self.names)}: {self.n_rows:,} cells x {len(self.var):,} genes)"

    @cached_property
    def groups(self) -> Groups:
        """Cells of all screens, grouped."""
        named = [_named_dataset(source.groups, name) for source, name in zip(self.sources, self.names, strict=True)]
        return Groups.concat(named, [source.n_rows for source in self.sources])

    @property
    def n_rows(self) -> int:
        """Number of cells of all screens, controls included."""
        return len(self._segments)

    @property
    def var(self) -> pd.DataFrame:
        """The var table of the shared genes."""
        return self._genes.var

    @property
    def matrix(self) -> AlignedMatrix:
        """The matrices of all stores, over the shared genes."""
        return self._matrix

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """Matrix of each store."""
        return tuple(source.matrix for source in self.sources)

    @property
    def stores(self) -> tuple[Store, ...]:
        """The stores, in the order of their rows."""
        return tuple(source.store for source in self.sources)

    def segments(self, layer: str | None) -> list[MatrixSegment]:
        """Return the matrix of each store."""
        return [
            replace(source.segments(layer)[0], first_row=int(offset), column_of=columns)
            for source, offset, columns in zip(
                self.sources, self._segments.offsets, self._genes.column_of, strict=False
            )
        ]

    def read_embedding(self, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        """(n, width) rows of the embedding, float32."""
        found: NDArray[np.float32] = self._segments.gather(rows, lambda n, local: self.sources[n].read_embedding(local))
        return found

    def read_obs(self, column: str, rows: NDArray[np.integer]) -> NDArray[Any]:
        """(n,) values of an obs column."""
        found: NDArray[Any] = self._segments.gather(rows, lambda n, local: self.sources[n].read_obs(column, local))
        return found

    def obs_names(self, rows: NDArray[np.integer]) -> NDArray[Any]:
        """(n,) cell names, as in the screens; not unique when screens share names."""
        found: NDArray[Any] = self._segments.gather(rows, lambda n, local: self.sources[n].obs_names(local))
        return found


def _named_dataset(groups: Groups, name: str) -> Groups:
    labels = groups.labels["dataset"]
    named = [name] if len(labels) == 1 else [f"{name}/{label}" for label in labels]
    return replace(groups, labels={**groups.labels, "dataset": np.array(named, dtype=np.str_)})


def _stem(source: PerturbationAnnDataSource) -> str:
    return Path(str(source.config.file_path)).name.split(".")[0]
