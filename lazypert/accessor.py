"""``ds.pert``: the engine on an opened Dataset, or on any selection of its cells."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from lazypert.controls import ControlMappingConfig, control_mapping
from lazypert.dataset import CELL, CODES, STORE, STORE_ROW
from lazypert.errors import ConfigError
from lazypert.groups import Groups
from lazypert.obs import groups_of
from lazypert.qc import KnockdownFilterConfig, KnockdownResult, MatrixPart, OnTargetKnockdownFilter
from lazypert.source import PerturbationAnnDataSource, PerturbationSourceConfig
from lazypert.splits import (
    FewShotSplitter,
    FewShotSplitterConfig,
    RandomSplitter,
    RandomSplitterConfig,
    SplitResult,
    ZeroShotSplitter,
    ZeroShotSplitterConfig,
)
from lazypert.store import Store

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
        return Store(self._ds.attrs[STORE])

    @cached_property
    def groups(self) -> Groups:
        """Cells of this Dataset, grouped; from the store's table when it has all of them."""
        store = self.store
        if self._is_whole:
            return store.groups
        codes: list[Any] = []
        labels = []
        for axis, column in zip(("cell_type", "perturbation", "dataset", "batch"), store.roles.columns(), strict=True):
            labels.append(store.groups.labels[axis])
            codes.append(None if column is None else self._codes(column, store.groups.labels[axis]))
        rows = self._ds[STORE_ROW].to_numpy()
        return Groups.from_codes(codes, labels, store.roles, len(rows), rows=rows)

    @property
    def _is_whole(self) -> bool:
        if self._ds.sizes[CELL] != self.store.n_obs:
            return False
        rows = self._ds[STORE_ROW].to_numpy()
        return bool((rows == np.arange(len(rows))).all())

    def _codes(self, column: str, labels: NDArray[np.str_]) -> Any:
        name = next(n for n, v in self._ds.coords.items() if v.attrs.get("obs_column") == column)
        coded = f"{name}{CODES}"
        if coded not in self._ds.coords:
            values = np.asarray(self._ds[name].values)
            missing = np.array([value is None or value != value for value in values])
            number = np.searchsorted(labels, np.where(missing, labels[0], values.astype(np.str_)))
            return np.where(missing, -1, number).astype(np.int32)
        categories = np.asarray(self._ds[coded].attrs["categories"], dtype=np.str_)
        renumber = np.append(np.searchsorted(labels, categories), -1).astype(np.int32)
        data = self._ds[coded].data
        if hasattr(data, "map_blocks"):
            return data.map_blocks(_take, table=renumber, dtype=np.int32)
        return renumber[data]

    @property
    def n_rows(self) -> int:
        """Rows of the store."""
        return self.store.n_obs

    def gene_labels(self, var_gene_col: str | None) -> NDArray[np.str_]:
        """(n_genes,) gene names, from a var column or the var index."""
        return self.source().gene_labels(var_gene_col)

    def parts(self, layer: str | None) -> list[MatrixPart]:
        """Return the store's matrix."""
        return [MatrixPart(0, self.store.matrix(layer), np.arange(self.store.n_vars, dtype=np.int32))]

    def table(self) -> pd.DataFrame:
        """One line a group: cell type, perturbation, number of cells and batches, whether it is control."""
        return self.groups.table()

    def regroup(self, **columns: str | None) -> Groups:
        """Group the store's cells by other columns: ``regroup(pert_col="guide", control_pert="NT-1")``."""
        from lazypert.schema import Roles

        return groups_of(self.store, Roles.from_json({**self.store.roles.to_json(), **columns}))

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
        mode: str = "random",
        *,
        held_out_cell_types: tuple[str, ...] = (),
        held_out_perturbations: tuple[str, ...] = (),
        train_frac: float = 0.8,
        valid_frac: float = 0.1,
        seed: int = 42,
    ) -> SplitResult:
        """Split the cells; see the splitters for the rules."""
        shared: dict[str, Any] = {"train_frac": train_frac, "valid_frac": valid_frac, "seed": seed}
        if mode == "random":
            return RandomSplitter(RandomSplitterConfig(**shared)).split(self)
        if mode == "zeroshot":
            zero = ZeroShotSplitterConfig(held_out_cell_types=held_out_cell_types, **shared)
            return ZeroShotSplitter(zero).split(self)
        if mode == "fewshot":
            few = FewShotSplitterConfig(held_out_perturbations=held_out_perturbations, **shared)
            return FewShotSplitter(few).split(self)
        raise ConfigError(f"mode: got {mode!r}, expected 'random', 'zeroshot' or 'fewshot'.")

    def knockdown(self, **options: Any) -> KnockdownResult:
        """On-target knockdown QC; options are those of `KnockdownFilterConfig`."""
        return OnTargetKnockdownFilter(KnockdownFilterConfig(**options)).run(self)

    def match_controls(self, splits: SplitResult | None = None, **options: Any) -> NDArray[np.int64]:
        """Control rows of every perturbed cell; options are those of `ControlMappingConfig`."""
        return control_mapping(ControlMappingConfig(**options)).build_mapping(self, splits)

    def source(self, **options: Any) -> PerturbationAnnDataSource:
        """Return the store as a source, with the store's own roles; options are those of its config."""
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
        }
        return PerturbationAnnDataSource(PerturbationSourceConfig(file_path=self.store.path, **(given | options)))


def _take(codes: NDArray[Any], table: NDArray[np.int32]) -> NDArray[np.int32]:
    return table[codes]
