"""Which features a batch contains (genes or an embedding), and how they are made from the stored matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lazypert.errors import ConfigError, NotCountsError
from lazypert.loading.row_pointers import RowTransform
from lazypert.screen.gene_selection import select_genes
from lazypert.sparse.columns import ColumnSelection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lazypert.loading.config import LoaderConfig
    from lazypert.sources.base import PerturbationSource


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MatrixPlan:
    """The features of a cell: an embedding as stored, or genes of the matrix.

    Attributes
    ----------
    n_features
        Features per cell.
    is_embedding
        Whether the features are an embedding.
    columns
        Genes that are selected while rows are read; None reads all genes.
    transform
        Steps that collation applies to rows after they are read, including the selection of genes if it
        must come after downsampling.
    """

    n_features: int
    is_embedding: bool
    columns: ColumnSelection | None
    transform: RowTransform

    @classmethod
    def from_config(cls, source: PerturbationSource, config: LoaderConfig) -> MatrixPlan:
        """Plan the features that a loader's options ask for.

        Raises
        ------
        ConfigError
            If an option has no meaning in the source's output space, or a gene is named twice.
        ColumnNotFoundError
            If a gene does not exist.
        NotCountsError
            If reads are to be downsampled or normalised and a matrix holds something else.
        """
        is_embedding = source.config.output_space == "embedding"
        if is_embedding:
            _check_embedding_options(config)
        thinning = config.downsampling
        for name, advice in _NEEDS_COUNTS.items():
            if getattr(config, name) is not None:
                _check_counts(source, name, advice)
        columns = _select_genes(source, config.genes)
        # Downsampling needs the reads of all genes, so it rules out selecting genes while reading.
        selects_on_read = thinning is None
        transform = RowTransform(
            columns=None if selects_on_read else columns,
            n_columns=source.get_n_genes() if columns is None else columns.n_columns,
            fraction=1.0 if thinning is None else thinning.fraction,
            target_depth=None if thinning is None else thinning.target_depth,
            target_sum=config.target_sum,
        )
        return cls(
            n_features=source.n_features if is_embedding else transform.n_columns,
            is_embedding=is_embedding,
            columns=columns if selects_on_read else None,
            transform=transform,
        )

    def fingerprint(self, source: PerturbationSource) -> tuple[Any, ...]:
        """Everything that decides which features a cell has: matrix, genes, and how their values are treated."""
        transform, config = self.transform, source.config
        selection = self.columns or transform.columns
        return (
            config.embedding_key if self.is_embedding else config.layer,
            "\0".join(map(str, source.var.index)),
            None if selection is None else selection.lookup,
            (self.is_embedding, transform.fraction, transform.target_depth, transform.target_sum),
        )


def _check_embedding_options(config: LoaderConfig) -> None:
    for name in ("genes", "target_sum", "downsampling"):
        if getattr(config, name) is not None:
            raise ConfigError(
                f"{name}: got {getattr(config, name)!r} with output_space='embedding', expected None. "
                "Embeddings are returned as stored."
            )
    if config.layout == "csr":
        raise ConfigError("layout: got 'csr' with output_space='embedding', expected 'dense'. Embeddings are dense.")


# Values that are normalised or logged already look like any others after a second time, so nobody would notice.
_NEEDS_COUNTS = {
    "downsampling": "only reads can be dropped. Choose a layer of counts (layer=...).",
    "target_sum": "values that are normalised or logged already would be normalised and logged again. Leave out "
    "target_sum, or choose a layer of counts (layer=...).",
}


def _check_counts(source: PerturbationSource, option: str, advice: str) -> None:
    for matrix in source.matrices:
        if not matrix.is_counts:
            stats = matrix.stats
            raise NotCountsError(
                f"{option}: got {matrix.name}, which holds values that are not counts (from {stats['minimum']:g} to "
                f"{stats['maximum']:g}, {stats['n_nonfinite']:,} NaN or infinite), expected counts: {advice}"
            )


def _select_genes(source: PerturbationSource, genes: Sequence[str] | None) -> ColumnSelection | None:
    names = source.var.index
    if genes is None:
        if source.config.output_space != "gene":
            return None
        assert source.hvg_indices is not None
        return ColumnSelection.from_indices(source.hvg_indices, len(names))
    return select_genes(genes, names)
