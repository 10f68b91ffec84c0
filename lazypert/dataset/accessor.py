"""``ds.pert``: the engine on an opened Dataset, or on any selection of its cells."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from lazypert._internal.permutation import inverse
from lazypert._internal.validation import require_choice
from lazypert.dataset.variables import CELL, STORAGE_OPTIONS, STORE, STORE_ROW
from lazypert.design.controls import ControlMappingConfig, control_mapping
from lazypert.design.splits import SPLIT_MODES, SplitMode, SplitOptions, SplitResult, make_splitter
from lazypert.errors import ConfigError
from lazypert.quality import KnockdownFilterConfig, KnockdownResult, OnTargetKnockdownFilter
from lazypert.screen.groups import Groups
from lazypert.screen.roles import AXES
from lazypert.sources.anndata_source import PerturbationAnnDataSource
from lazypert.sources.config import PerturbationSourceConfig
from lazypert.store.grouping import group_cells
from lazypert.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray


@xr.register_dataset_accessor("pert")  # type: ignore[no-untyped-call]  # xarray leaves it untyped
class PertAccessor:
    """Groups, splits, controls and quality control of a screen.

    Works on a Dataset from `lazypert.open` and on any selection of its cells. All row numbers are
    rows of the store, also for a selection: ``ds.store_row`` says which rows it has.
    """

    def __init__(self, ds: xr.Dataset) -> None:
        if STORE not in ds.attrs or STORE_ROW not in ds.coords:
            raise ConfigError(
                "ds.pert needs a Dataset from lazypert.open(...), or a selection of one: this one has no "
                f"{STORE!r} attribute or no {STORE_ROW!r} coordinate. Arithmetic drops attributes; "
                "use xr.set_options(keep_attrs=True), or select first and compute after."
            )
        self._ds = ds

    def __repr__(self) -> str:
        return f"{self._ds.attrs['screen']}\n{self.table()}"

    @cached_property
    def store(self) -> Store:
        """The store behind the Dataset."""
        return Store(self._ds.attrs[STORE], self._ds.encoding.get(STORAGE_OPTIONS))

    @cached_property
    def groups(self) -> Groups:
        """Cells of this Dataset, grouped; from the store's table when it has all of them."""
        store = self.store
        if self._is_whole:
            return store.groups
        # A cell's run in the store's table says its labels: no column is read.
        whole, rows = store.groups, self._ds[STORE_ROW].to_numpy()
        run = whole.run_of(rows if whole.row_order is None else inverse(whole.row_order)[rows])
        codes = [None if column is None else whole.codes[axis][run] for axis, column in store.roles.columns().items()]
        return Groups.from_codes(codes, [whole.labels[axis] for axis in AXES], store.roles, len(rows), rows=rows)

    @property
    def _is_whole(self) -> bool:
        if self._ds.sizes[CELL] != self.store.n_obs:
            return False
        rows = self._ds[STORE_ROW].to_numpy()
        return bool((rows == np.arange(len(rows))).all())

    def table(self) -> pd.DataFrame:
        """One line a group: cell type, perturbation, number of cells and batches, whether it is control."""
        return self.groups.table()

    def regroup(self, **columns: str | None) -> Groups:
        """Group the store's cells by other columns: ``regroup(pert_col="guide", control_pert="NT-1")``."""
        from lazypert.screen.roles import Roles

        return group_cells(self.store, Roles.from_json({**self.store.roles.to_json(), **columns}))

    def select(
        self,
        *,
        perturbation: str | Sequence[str] | None = None,
        cell_type: str | Sequence[str] | None = None,
        batch: str | Sequence[str] | None = None,
        controls: bool | None = None,
    ) -> xr.Dataset:
        """Cells with the given labels; reads no matrix.

        Parameters
        ----------
        perturbation, cell_type, batch
            A label or several.
        controls
            True for control cells only, False for others only.

        Raises
        ------
        LabelNotFoundError
            When a label does not occur.
        """
        groups = self.groups
        chosen = np.ones(len(groups.start), dtype=bool)
        for axis, wanted in (("perturbation", perturbation), ("cell_type", cell_type), ("batch", batch)):
            if wanted is not None:
                names = [wanted] if isinstance(wanted, str) else list(wanted)
                chosen &= np.isin(groups.codes[axis], [groups.code_of(axis, name) for name in names])
        if controls is not None:
            chosen &= groups.is_control == controls
        rows = np.sort(groups.rows(chosen)[:])
        if self._is_whole:
            contiguous = len(rows) > 0 and rows[-1] - rows[0] + 1 == len(rows)
            return self._ds.isel(cell=slice(int(rows[0]), int(rows[-1]) + 1) if contiguous else rows)
        return self._ds.isel(cell=np.flatnonzero(np.isin(self._ds[STORE_ROW].to_numpy(), rows)))

    def split(
        self,
        mode: SplitMode = "random",
        *,
        held_out_cell_types: tuple[str, ...] = (),
        held_out_perturbations: tuple[str, ...] = (),
        train_frac: float = SplitOptions.train_frac,
        valid_frac: float = SplitOptions.valid_frac,
        seed: int = SplitOptions.seed,
    ) -> SplitResult:
        """Split the cells; see the splitters for the rules."""
        require_choice("mode", mode, SPLIT_MODES)
        options = SplitOptions(
            split_mode=mode,
            held_out_cell_types=held_out_cell_types,
            held_out_perturbations=held_out_perturbations,
            train_frac=train_frac,
            valid_frac=valid_frac,
            seed=seed,
        )
        return make_splitter(options).split(self)

    def knockdown(self, **options: Any) -> KnockdownResult:
        """On-target knockdown QC; options are those of `KnockdownFilterConfig`.

        Raises
        ------
        ConfigError
            When a cell occurs more than once in the selection.
        """
        rows = self._ds[STORE_ROW].to_numpy()
        if len(np.unique(rows)) != len(rows):
            raise ConfigError(
                "Some cells occur more than once in this selection, and a mean over cells counts each once. "
                "Select cells without repeats, or draw them from the result."
            )
        source = PerturbationAnnDataSource(self._source_config(), store=self.store, groups=self.groups)
        return OnTargetKnockdownFilter(KnockdownFilterConfig(**options)).run(source)

    def match_controls(self, splits: SplitResult | None = None, **options: Any) -> NDArray[np.int64]:
        """Control rows of every perturbed cell; options are those of `ControlMappingConfig`."""
        return control_mapping(ControlMappingConfig(**options)).build_mapping(self, splits)

    def source(self, **options: Any) -> PerturbationAnnDataSource:
        """Return the store as a source, with the store's own roles; options are those of its config."""
        return PerturbationAnnDataSource(self._source_config(**options), store=self.store)

    def _source_config(self, **options: Any) -> PerturbationSourceConfig:
        roles = self.store.roles
        if roles.pert_col is None or roles.control_pert is None:
            raise ConfigError(
                f"{self.store.path!r} was converted without pert_col or control_pert; "
                "convert it again with both, or use PerturbationAnnDataSource with a config that names them."
            )
        given: dict[str, Any] = {
            "pert_col": roles.pert_col,
            "cell_type_col": roles.cell_type_col,
            "batch_col": roles.batch_col,
            "control_pert": roles.control_pert,
            "storage_options": self.store.storage_options,
        }
        return PerturbationSourceConfig(file_path=self.store.path, **(given | options))
