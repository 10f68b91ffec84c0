"""``ds.pert``: groups, splits, controls and quality control of an opened Dataset, or of a selection of its cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import pandas as pd
import xarray as xr

from lazypert._internal.validation import make_config, named_options, require_choice, require_names
from lazypert.analysis.result_accessor import RESULT, ResultAccessor
from lazypert.dataset.analysis_calls import AnalysisCalls
from lazypert.dataset.anndata_files import to_anndata, write_h5ad
from lazypert.dataset.cell_rows import as_array, cell_rows, positions_in, unique_rows
from lazypert.dataset.dataset_source import selection_config, store_config
from lazypert.dataset.selection import rows_with_labels
from lazypert.dataset.variables import STORE
from lazypert.design.control_coverage import control_coverage
from lazypert.design.controls import ControlMappingConfig, control_mapping
from lazypert.errors import LabelNotFoundError
from lazypert.quality import KnockdownFilterConfig, KnockdownResult, OnTargetKnockdownFilter
from lazypert.screen.roles import Roles
from lazypert.sources.anndata_source import PerturbationAnnDataSource
from lazypert.splits.options import SPLIT_MODES, SplitKwargs, SplitMode, SplitOptions
from lazypert.splits.splitters import SPLITTERS, make_splitter, wrong_mode
from lazypert.store.columns import open_column, take_column
from lazypert.store.find_cells import find_cells
from lazypert.store.group_by_columns import group_cells

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import DTypeLike, NDArray

    from lazypert.design.controls import ControlMappingKwargs
    from lazypert.quality import KnockdownFilterKwargs
    from lazypert.screen.groups import Groups
    from lazypert.screen.roles import RolesKwargs
    from lazypert.sources.config import PerturbationSourceKwargs, ScreenOptions
    from lazypert.splits.split_result import SplitResult


class PertAccessor(AnalysisCalls):
    """Groups, splits, controls, quality control and statistics of a screen.

    Works on a Dataset from `lazypert.open` and on any selection of its cells. All row numbers are
    store rows, also for a selection: ``ds.store_row`` lists the rows it contains.
    """

    def __repr__(self) -> str:
        return (
            f"PertAccessor({self.groups.n_obs:,} cells in {len(self.groups):,} groups; ds.pert.table() lists them)\n"
            f"screen: {self._ds.attrs['screen']}"
        )

    def obs_names(self, rows: NDArray[np.integer]) -> NDArray[Any]:
        """Read (n,) names of cells by store row."""
        return self.groups.cells.names(rows)

    @named_options
    def rows_of(self, names: str | Sequence[str]) -> NDArray[np.int64]:
        """Find cells by name, without an index: reads the 8 bytes of each cell's name hash, a part at a time.

        One call takes about as long for a million names as for one.

        Parameters
        ----------
        names
            (n,) names of cells of this Dataset, in any order.

        Returns
        -------
        (n,) store row of each name: of the whole Dataset, ``ds.isel(cell=ds.pert.rows_of(names))`` are these cells.

        Raises
        ------
        LabelNotFoundError
            When a name does not occur in this Dataset.
        ConfigError
            When several cells have one of the names.
        """
        names = require_names("names", names)
        rows = find_cells(self.store, names)
        if not self._is_complete:
            is_inside = np.isin(rows, as_array(cell_rows(self._ds)))
            if not is_inside.all():
                raise LabelNotFoundError(
                    f"names: got {names[int(np.argmin(is_inside))]!r}, which is a cell of the store but not of this "
                    "selection. Look it up in the Dataset from lazypert.open."
                )
        return rows

    def read_obs(self, column: str, rows: NDArray[np.integer]) -> NDArray[Any]:
        """Read (n,) values of an obs column by store row."""
        return open_column(self.store, f"obs/{self.store.require_obs(column)}")[np.asarray(rows)]

    @named_options
    def obs(self, columns: str | Sequence[str] | None = None) -> pd.DataFrame:
        """Read the obs table of the current cells.

        Parameters
        ----------
        columns
            Which columns, in this order; all by default.

        Returns
        -------
        One row per cell, in the order of the Dataset, indexed by cell name. Columns have the dtypes that AnnData
        shows, such as ordered categories.

        Raises
        ------
        ColumnNotFoundError
            When a column does not exist.
        ConfigError
            When `columns` are not a list of names.
        """
        wanted = self.store.obs_columns if columns is None else require_names("columns", columns)
        rows = as_array(cell_rows(self._ds))
        values = {name: take_column(self.store, f"obs/{self.store.require_obs(name)}", rows) for name in wanted}
        return pd.DataFrame(values, index=pd.Index(take_column(self.store, "obs/_index", rows)))

    @named_options
    def to_anndata(self, dtype: DTypeLike | None = None) -> AnnData:
        """Read the Dataset into memory as an AnnData.

        Parameters
        ----------
        dtype
            Of X, layers and obsm entries. By default each keeps that of the Dataset: float32, or float64 where float32
            would not be exact.

        Returns
        -------
        AnnData with the current cells and genes, in their current order, and whatever was assigned to the Dataset:
        (cell, gene) variables are X and layers in CSR form, other (cell, ...) variables are in obsm, and columns along
        one dimension in obs or var. Codes of categories and totals from conversion are left out. uns is that of the
        store; varm and varp are those of the current genes, provided that these are found in the store by name.

        Raises
        ------
        ConfigError
            When the Dataset has no dimension ``cell`` or ``gene``, or a variable that AnnData has no place for.
        """
        return to_anndata(self._ds, self.store, dtype)

    @named_options
    def write_h5ad(
        self,
        path: str | Path,
        *,
        dtype: DTypeLike | None = None,
        compression: str | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write the Dataset as an .h5ad file, which holds what `to_anndata` returns, in bounded memory.

        Matrices are read and written in blocks of about 32 MiB; only obs, var and the row bounds of a matrix are in
        memory. The file appears once it is complete.

        Parameters
        ----------
        path
            A local file.
        dtype
            As in `to_anndata`.
        compression
            Of the matrices, such as ``"gzip"``; none by default.
        overwrite
            Whether an existing file is replaced.

        Returns
        -------
        The path.

        Raises
        ------
        ConfigError
            As `to_anndata`, or when the folder does not exist.
        StoreExistsError
            When the file exists and `overwrite` is false.
        """
        return write_h5ad(self._ds, self.store, path, dtype=dtype, compression=compression, overwrite=overwrite)

    def table(self) -> pd.DataFrame:
        """One row per group: its labels and covariates, numbers of cells and batches, and whether it is a control."""
        return self.groups.table()

    def regroup(self, **roles: Unpack[RolesKwargs]) -> Groups:
        """Group the store's cells by other columns: ``regroup(pert_col="guide", control_pert="NT-1")``.

        Parameters
        ----------
        **roles
            Roles to change: `pert_col`, `cell_type_col`, `batch_col`, `dataset_col`, `control_pert`, `separator`,
            `covariates` or `rename_perturbations`.

        Raises
        ------
        ConfigError
            When a role is unknown.
        ColumnNotFoundError
            When a column does not exist.
        LabelNotFoundError
            When a given control label does not occur.
        """
        groups = group_cells(self.store, make_config(Roles, {**self.store.roles.to_json(), **roles}))
        if roles.get("control_pert") is not None:
            groups.require_controls()
        return groups

    @named_options
    def select(
        self,
        *,
        perturbation: str | Sequence[str] | None = None,
        cell_type: str | Sequence[str] | None = None,
        batch: str | Sequence[str] | None = None,
        covariates: Mapping[str, Any] | None = None,
        controls: bool | None = None,
    ) -> xr.Dataset:
        """Select the cells with the given labels, without reading a matrix.

        Parameters
        ----------
        perturbation, cell_type, batch
            One label or several; None accepts every label.
        covariates
            One label or several for each covariate that matters: ``{"dose": (1, 10), "time": "24"}``. Labels may be
            text or numbers; None stands for cells without a value.
        controls
            True selects control cells only, False all others. To select a perturbation and the controls, name both:
            ``select(perturbation=["TP53", "non-targeting"])``.

        Returns
        -------
        The Dataset with the cells that meet all conditions, in their current order.

        Raises
        ------
        LabelNotFoundError
            When a label does not occur.
        ConfigError
            When the store was not converted with such a covariate, or `controls` excludes every perturbation that is
            named.
        """
        rows = rows_with_labels(
            self.groups,
            perturbation=perturbation,
            cell_type=cell_type,
            batch=batch,
            covariates=covariates,
            controls=controls,
        )
        if self._is_complete:
            is_range = len(rows) > 0 and rows[-1] - rows[0] + 1 == len(rows)
            return self._ds.isel(cell=slice(int(rows[0]), int(rows[-1]) + 1) if is_range else rows)
        return self._ds.isel(cell=positions_in(cell_rows(self._ds), rows))

    def split(
        self,
        mode: SplitMode = "random",
        **options: Unpack[SplitKwargs],
    ) -> SplitResult:
        """Split the cells of this Dataset.

        Parameters
        ----------
        mode
            The rule: ``"random"``, ``"zeroshot"``, ``"fewshot"``, ``"heldout"`` or ``"combinations"``.
        **options
            Options of its config, such as `HeldOutSplitterConfig` for ``"heldout"``.

        Raises
        ------
        ConfigError
            When an option is invalid, is not one of this mode's, or nothing would be held out.
        LabelNotFoundError
            When a named label does not occur in this Dataset.
        """
        require_choice("mode", mode, SPLIT_MODES)
        known = set(SPLITTERS[mode].config_type.__dataclass_fields__)
        for name in options:
            if name not in known and name in SplitOptions.__dataclass_fields__:
                raise wrong_mode(name, options[name], mode)  # type: ignore[literal-required]
        return make_splitter(make_config(SplitOptions, {**options, "split_mode": mode})).split(self)

    def knockdown(self, **options: Unpack[KnockdownFilterKwargs]) -> KnockdownResult:
        """Run on-target knockdown quality control.

        Parameters
        ----------
        **options
            Options of `KnockdownFilterConfig`.

        Raises
        ------
        ConfigError
            When an option is unknown or invalid, or a cell occurs more than once in the selection.
        """
        config = make_config(KnockdownFilterConfig, options)
        unique_rows(self._ds, "a mean over cells")
        source = PerturbationAnnDataSource(store_config(self.store, {}), store=self.store, groups=self.groups)
        return OnTargetKnockdownFilter(config).run(source)

    def match_controls(
        self, splits: SplitResult | None = None, **options: Unpack[ControlMappingKwargs]
    ) -> NDArray[np.int64]:
        """Match every perturbed cell with controls.

        Parameters
        ----------
        splits
            If given, each cell is matched with controls in its own split.
        **options
            Options of `ControlMappingConfig`.

        Returns
        -------
        (n_mapped, n_basal_samples) int64 store rows of controls, for each perturbed cell in the order of the
        store rows. With ``map_controls``, controls are matched too.

        Raises
        ------
        ConfigError
            When an option is unknown or invalid.
        EmptyPoolError
            When a group has no control, or a cell no complete match with ``fallback="error"``, and ``on_empty`` is
            ``"error"``.
        """
        return control_mapping(make_config(ControlMappingConfig, options)).build_mapping(self, splits)

    def control_coverage(
        self, splits: SplitResult | None = None, **options: Unpack[ControlMappingKwargs]
    ) -> pd.DataFrame:
        """Count the cells of each group by the keys of `match` that controls share with them.

        Parameters
        ----------
        splits
            If given, cells are matched in their own split, and counted by split.
        **options
            Options of `ControlMappingConfig`, such as `match`.

        Returns
        -------
        One row per group; see `lazypert.design.control_coverage` for the columns.

        Raises
        ------
        ConfigError
            When an option is unknown or invalid, or a key cannot be used with this screen.
        ColumnNotFoundError
            When a key is not an obs column.
        """
        return control_coverage(self, make_config(ControlMappingConfig, options), splits)

    def source(self, **options: Unpack[PerturbationSourceKwargs]) -> PerturbationAnnDataSource:
        """Return the store as a source, with all of its cells, and its own roles unless others are given.

        Parameters
        ----------
        **options
            Options of `PerturbationSourceConfig`, except `file_path`.

        Raises
        ------
        ConfigError
            When an option is unknown or invalid, or the store has no perturbation column or control label.
        """
        return PerturbationAnnDataSource(store_config(self.store, options), store=self.store)

    def selected_source(self, options: ScreenOptions) -> PerturbationAnnDataSource:
        """Return a source of this Dataset's cells only, as ``PerturbationPipeline.setup(ds)`` uses it.

        Parameters
        ----------
        options
            A `PerturbationSourceConfig` or a `PerturbationPipelineConfig`; the store is that of the Dataset, and so are
            the roles that the options leave at their defaults.

        Raises
        ------
        ConfigError
            When a cell occurs more than once, or genes were selected or reordered.
        """
        store, rows = self.store, unique_rows(self._ds, "a split")
        config = selection_config(self._ds, store, options)
        groups = group_cells(store, config.roles)
        groups = groups if self._is_complete else groups.select(as_array(rows))
        return PerturbationAnnDataSource(config, store=store, groups=groups)


@xr.register_dataset_accessor("pert")  # type: ignore[no-untyped-call,untyped-decorator]  # xarray leaves it untyped
def _accessor(ds: xr.Dataset) -> PertAccessor | ResultAccessor:
    """Return what ``ds.pert`` is: for a screen, or for a result such as that of ``ds.pert.aggregate``."""
    return ResultAccessor(ds) if RESULT in ds.attrs and STORE not in ds.attrs else PertAccessor(ds)
