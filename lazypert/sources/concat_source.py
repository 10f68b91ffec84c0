"""Several screens as one source, with merged labels and aligned genes."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lazypert._internal.paths import location
from lazypert._internal.unique_names import unique_names
from lazypert._internal.validation import require
from lazypert.errors import ConfigError
from lazypert.screen.concat_groups import concat_groups
from lazypert.screen.gene_alignment import align_genes, versions_apart
from lazypert.sources.aligned_matrix import AlignedMatrix
from lazypert.sources.base import PerturbationSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from lazypert.screen.gene_alignment import GeneAlignment
    from lazypert.screen.groups import Groups
    from lazypert.sources.anndata_source import PerturbationAnnDataSource
    from lazypert.sources.matrix_segment import MatrixSegment
    from lazypert.store.matrix import Matrix
    from lazypert.store.store import Store


class PerturbationConcatSource(PerturbationSource):
    """Several screens as one source; rows continue from one screen to the next.

    Labels are merged, and genes are aligned by name in the var index. Each screen is its own dataset,
    so cells are matched only with controls from the same screen.

    Parameters
    ----------
    sources
        Screens with the same roles and output space.
    join
        ``"inner"`` keeps the genes that all screens measured; ``"outer"`` keeps every gene, with zeros where a
        screen did not measure it.
    names
        Dataset names. None uses the file stems, numbered where they repeat.

    Raises
    ------
    ConfigError
        When there are no sources, they differ in an option, or the names are not unique.
    SourceFormatError
        When the genes cannot be aligned.
    """

    def __init__(
        self,
        sources: Sequence[PerturbationAnnDataSource],
        *,
        join: Literal["inner", "outer"] = "inner",
        names: Sequence[str] | None = None,
    ) -> None:
        if not sources:
            raise ConfigError("sources: got an empty list, expected at least one source.")
        for name in ("output_space", "layer", "embedding_key", "hvg_col", "additional_obs"):
            values = [getattr(source.config, name) for source in sources]
            require(all(value == values[0] for value in values), name, values, "the same value in all sources")
        covariates = [source.groups.roles.covariates for source in sources]
        require(len(set(covariates)) == 1, "covariates", covariates, "the same columns, in one order, in all sources")
        self.sources = tuple(sources)
        self.config = sources[0].config
        self.names = tuple(names) if names is not None else unique_names([_stem(source) for source in sources])
        is_unique = len(self.names) == len(set(self.names)) == len(sources)
        require(is_unique, "names", self.names, f"{len(sources)} different names, one per source")
        self._join = join
        self._genes = self._align(self.config.layer)
        self._matrix = AlignedMatrix(self.matrices, self._genes)
        self._segments = self._matrix.segments

    def __repr__(self) -> str:
        names = ", ".join(self.names[:5]) + (f", ... {len(self.names) - 5:,} more" if len(self.names) > 5 else "")
        return f"PerturbationConcatSource({names}: {self.n_rows:,} cells x {len(self.var):,} genes)"

    @cached_property
    def groups(self) -> Groups:
        """Cells of all screens, grouped by cell type, perturbation, dataset and batch."""
        groups = [_name_dataset(source.groups, name) for source, name in zip(self.sources, self.names, strict=True)]
        return concat_groups(groups, [source.n_rows for source in self.sources])

    @property
    def n_rows(self) -> int:
        """Number of cells of all screens, including controls."""
        return len(self._segments)

    @property
    def var(self) -> pd.DataFrame:
        """The var table of the configured layer, over the shared genes."""
        return self._genes.var

    @property
    def stores(self) -> tuple[Store, ...]:
        """The stores, in the order of their rows."""
        return tuple(source.store for source in self.sources)

    def content_digests(self, obs: Sequence[str] = ()) -> tuple[str, ...]:
        """Digest of each store's content, including what was added to it and is used: by the config, or in `obs`."""
        return tuple(digest for source in self.sources for digest in source.content_digests(obs))

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """The matrix of each store."""
        return tuple(source.matrix for source in self.sources)

    @property
    def matrix(self) -> AlignedMatrix:
        """The matrix of all cells, over the shared genes."""
        return self._matrix

    def layer_var(self, layer: str | None) -> pd.DataFrame:
        """Return the var table of a layer, over the shared genes: raw has its own. None for `layer` selects X."""
        return self._genes_of(layer).var

    def segments(self, layer: str | None) -> list[MatrixSegment]:
        """Return one segment per store, in the order of their rows; None for `layer` selects X.

        Columns are those of the genes of `layer_var`.
        """
        return [
            replace(source.segments(layer)[0], first_row=int(first_row), column_of=columns)
            for source, first_row, columns in zip(
                self.sources, self._segments.first_rows[:-1], self._genes_of(layer).column_of, strict=True
            )
        ]

    def _genes_of(self, layer: str | None) -> GeneAlignment:
        """Alignment of the genes of a layer: that of the configured one, unless only one of them is raw."""
        own = self.config.layer
        is_same = all(source.layer_var(layer) is source.layer_var(own) for source in self.sources)
        return self._genes if is_same else self._align(layer)

    def _align(self, layer: str | None) -> GeneAlignment:
        frames = [source.layer_var(layer) for source in self.sources]
        alignment = align_genes(frames, self.names, self._join)
        if (apart := versions_apart(frames)) is not None:
            warnings.warn(f"{apart}.", UserWarning, stacklevel=3)
        return alignment

    def read_embedding(self, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        """Read (n, width) float32 rows of the embedding."""
        out: NDArray[np.float32] = self._segments.gather(rows, lambda i, local: self.sources[i].read_embedding(local))
        return out

    def read_obs(self, column: str, rows: NDArray[np.integer]) -> NDArray[Any]:
        """Read (n,) values of an obs column."""
        out: NDArray[Any] = self._segments.gather(rows, lambda i, local: self.sources[i].read_obs(column, local))
        return out

    def obs_names(self, rows: NDArray[np.integer]) -> NDArray[Any]:
        """Read (n,) cell names as stored, which repeat if screens share names."""
        out: NDArray[Any] = self._segments.gather(rows, lambda i, local: self.sources[i].obs_names(local))
        return out


def _name_dataset(groups: Groups, name: str) -> Groups:
    """Replace the dataset label with a name, or prefix the labels if the store was made from several files."""
    labels = groups.labels["dataset"]
    named = [name] if len(labels) == 1 else [f"{name}/{label}" for label in labels]
    return replace(groups, labels={**groups.labels, "dataset": np.array(named, dtype=np.str_)})


def _stem(source: PerturbationAnnDataSource) -> str:
    given = source.config.file_path
    path = location("file_path", given) if isinstance(given, str | Path) else source.store.path
    return Path(path).name.split(".")[0]
