"""Calls of ``ds.pert`` that compute statistics of genes: aggregates and tests, of the cells of a Dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazypert._internal.validation import named_options, require_names
from lazypert.analysis.aggregate import aggregate
from lazypert.analysis.rank_genes import rank_genes
from lazypert.dataset.cell_rows import unique_rows
from lazypert.dataset.dataset_source import require_stored_labels, selected_genes
from lazypert.dataset.opened_screen import OpenedScreen

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr


class AnalysisCalls(OpenedScreen):
    """Statistics of genes; `PertAccessor` adds all other calls."""

    @named_options
    def aggregate(
        self,
        by: str | Sequence[str] = ("cell_type", "perturbation"),
        stats: str | Sequence[str] = ("n", "mean", "var", "fraction"),
        *,
        of: str = "log1p",
        layer: str | None = None,
        genes: str | Sequence[str] | None = None,
    ) -> xr.Dataset:
        """Aggregate the expression of groups of cells, lazily, without dense blocks of the matrix.

        Nothing of the matrix is read before the result is computed, and for some groups only the chunks that hold their
        cells, whatever `genes` are. ``"log1p"`` and ``"cp10k"`` of a layer read its values twice, for the totals of
        cells first. A store in source order, or a column that the store is not sorted by, is read once for each 64 MiB
        of sums. Values are those of the store, also if others were assigned to the Dataset.

        Parameters
        ----------
        by
            What cells are grouped by: ``"cell_type"``, ``"perturbation"``, ``"batch"``, ``"dataset"``, or obs columns.
            ``()`` makes one group of all cells. Labels are text, also those of numbers.
        stats
            Any of ``"n"`` (cells), ``"sum"``, ``"mean"``, ``"var"`` (unbiased: divided by n - 1; from sums and sums of
            squares, in float64), ``"n_nonzero"`` (cells with a value other than zero) and ``"fraction"`` (their share).
        of
            ``"log1p"``: log(1 + counts per 10,000), natural logarithm; ``"cp10k"``: counts per 10,000; ``"counts"``;
            or ``"stored"``: values as they are, which need not be counts. Cells are scaled by their total over all
            genes.
        layer
            Matrix to aggregate: a layer or ``"raw"``; X by default.
        genes
            Names of genes, in this order; by default all of the Dataset, or of ``raw``.

        Returns
        -------
        Dataset of Dask arrays with the dimensions `by` and ``gene``, float64 (``n`` and ``n_nonzero`` are int64), and
        the labels as coordinates. Statistics of a group that has no cells are NaN, and so is the variance of a single
        cell. Cells without one of the labels are left out. An obs column that is called like a statistic or ``gene``
        gets the prefix ``obs_``. Results have the same bits on any scheduler and for any selection of groups.

        Raises
        ------
        ConfigError
            When an option is unknown or invalid, a cell or a gene occurs more than once, or labels were assigned to the
            Dataset in place of those of a column.
        NotCountsError
            When the values are not counts, and `of` is not ``"stored"``.
        ColumnNotFoundError
            When a column, a layer or a gene does not exist.
        ClusterError
            When workers of a cluster cannot read the store.

        Examples
        --------
        Mean expression of every perturbation in every cell type, as a table of one perturbation::

            means = ds.pert.aggregate(stats="mean")["mean"]
            means.sel(perturbation="TP53").to_pandas()
        """
        by, genes = self._cells_and_genes(by, layer, genes)
        return aggregate(self.store, self.groups, by=by, stats=stats, of=of, layer=layer, genes=genes)

    @named_options
    def pseudobulk(
        self,
        by: str | Sequence[str] = ("perturbation", "batch"),
        *,
        layer: str | None = None,
        genes: str | Sequence[str] | None = None,
    ) -> xr.Dataset:
        """Add up the counts of the cells of each perturbation and replicate, lazily, for tests of replicates.

        Parameters
        ----------
        by
            ``"perturbation"`` and the columns that tell replicates apart, such as ``"batch"`` or a column of donors;
            further columns, such as ``"cell_type"``, give profiles of their own.
        layer, genes
            As in `aggregate`.

        Returns
        -------
        Dataset with ``sum``, lazy float64 sums of counts, of the dimensions `by` and ``gene``; and ``n``, numbers of
        cells. ``result.pert.to_anndata()`` makes a table of them with a row for each combination that has cells, as
        pydeseq2 and decoupler read it.

        Raises
        ------
        LazypertError
            As `aggregate` does.

        Examples
        --------
        ::

            ds.pert.pseudobulk(by=("perturbation", "donor")).pert.to_anndata(min_cells=10)
        """
        return self.aggregate(by, stats=("n", "sum"), of="counts", layer=layer, genes=genes)

    @named_options
    def rank_genes(
        self,
        method: str = "t-test",
        *,
        reference: str = "control",
        by: str | Sequence[str] = "perturbation",
        of: str = "log1p",
        layer: str | None = None,
        genes: str | Sequence[str] | None = None,
    ) -> xr.Dataset:
        """Test which genes differ in expression between the cells of each perturbation and a reference, lazily.

        Reads what `aggregate` reads, with the same `by`.

        Parameters
        ----------
        method
            ``"t-test"``: Welch's t-test, as Scanpy's ``rank_genes_groups(method="t-test")``.
        reference
            ``"control"``: the controls, all labels of them together. ``"rest"``: all other cells that have a label,
            controls too.
        by
            ``"perturbation"``, or several columns, of which the others divide the cells: with
            ``("cell_type", "perturbation")``, each perturbation is compared with the reference of its cell type.
        of, layer, genes
            As in `aggregate`.

        Returns
        -------
        Dataset of the dimensions `by` and ``gene``, of the perturbations that have cells, without the controls:
        ``score`` (t), ``log2_fold_change``, ``p_value`` (two-sided), ``p_adjusted`` (Benjamini-Hochberg, over the genes
        of one comparison), ``mean`` and ``reference_mean``, all lazy and float64; and the numbers of cells ``n`` and
        ``reference_n``. Scores and p-values are NaN where a sample has fewer than two cells; a gene with the same value
        in all cells of both has a p-value of 1. The fold change is that of means on the scale of counts, each plus
        1e-9; stored values that are not counts have none, because their scale is not known.

        Raises
        ------
        ConfigError
            When `by` lacks ``"perturbation"``, there are no controls, or no genes; and as `aggregate` does.

        Examples
        --------
        ::

            tests = ds.pert.rank_genes("t-test")
            tests.sel(perturbation="TP53").to_dataframe().nsmallest(20, "p_adjusted")
        """
        by, genes = self._cells_and_genes(by, layer, genes)
        return rank_genes(
            self.store, self.groups, method=method, reference=reference, by=by, of=of, layer=layer, genes=genes
        )

    def _cells_and_genes(
        self, by: str | Sequence[str], layer: str | None, genes: str | Sequence[str] | None
    ) -> tuple[list[str], str | Sequence[str] | None]:
        """Check that the Dataset's cells and labels are those of the store, and return `by`, and its genes."""
        unique_rows(self._ds, "a statistic of cells")
        names = require_names("by", by)
        require_stored_labels(self._ds, self.store, names)
        return names, selected_genes(self._ds, self.store, layer) if genes is None else genes
