"""Options of a source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from lazypert._internal.config import SECRET, Config
from lazypert._internal.memory import Budget, parse_bytes
from lazypert._internal.validation import require, require_choice, require_flag, require_integer, require_names
from lazypert.errors import ConfigError
from lazypert.screen.roles import ControlLabels, Roles, covariate_names

if TYPE_CHECKING:
    from pathlib import Path

    from zarr.abc.store import Store as ZarrStore

    from lazypert.screen.renames import Renames


OutputSpace = Literal["gene", "all", "embedding"]


@dataclass(frozen=True, kw_only=True, repr=False)
class ScreenOptions(Config):
    """Options that sources share with the pipeline; `PerturbationSourceConfig` explains them."""

    pert_col: str = "perturbation"
    cell_type_col: str | None = "cell_type"
    batch_col: str | None = "batch"
    control_pert: ControlLabels = "non-targeting"
    control_col: str | None = None
    separator: str | None = None
    covariates: str | tuple[str, ...] | None = None
    rename_perturbations: Renames | None = None
    output_space: OutputSpace = "all"
    hvg_col: str | None = None
    embedding_key: str | None = None
    layer: str | None = None
    additional_obs: tuple[str, ...] = ()
    perturbation_features_file: str | Path | None = None
    cache_dir: str | Path | None = None
    cache_size: int | str = "20GiB"
    memory_limit: int | str = "1GiB"
    seed: int = 42
    storage_options: dict[str, Any] | None = field(default=None, metadata=SECRET)


@dataclass(frozen=True, kw_only=True, repr=False)
class PerturbationSourceConfig(ScreenOptions):
    """Options of a source: a screen, and how to read it.

    Parameters
    ----------
    file_path
        A lazypert store, its URL, or a Zarr store that holds it; or an ``.h5ad`` file, which is converted on first
        use. In this and the other paths, ``~`` and ``$VARIABLES`` are replaced.
    pert_col, cell_type_col, batch_col
        obs columns. `cell_type_col` and `batch_col` may be None if the screen has no such column.
    control_pert
        Label of control cells, or a tuple of several. ``*`` stands for any text, and ``?`` for any character.
    control_col
        Boolean obs column that marks the controls, in place of `control_pert`.
    separator
        Text between the parts of a combination's label, such as ``"+"``: ``B+A`` is then the same perturbation as
        ``A+B``, and ``A+<control>`` the same as ``A``. It is never guessed.
    covariates
        Further obs columns, such as ``("dose", "time")``, that together with the perturbation make a *condition*:
        groups, sentences and splits are then those of one cell type, perturbation and condition. None takes those that
        a store was converted with; ``()`` is for none.
    rename_perturbations
        Spellings to merge: ``{"ctrl ": "ctrl"}`` gives cells labelled ``"ctrl "`` the label ``"ctrl"``, also as a part
        of a combination; ``"strip"`` removes blanks around every label and part. Nothing is merged by default.
    output_space
        Features per cell: ``"all"`` genes, ``"gene"`` (the highly variable genes, see `hvg_col`),
        or an ``"embedding"`` (see `embedding_key`).
    hvg_col
        Boolean var column that marks the highly variable genes.
    embedding_key
        Name of an obsm entry.
    layer
        Layer to read; None reads X, and ``"raw"`` the matrix of AnnData's ``raw``, whose genes are then those of the
        source.
    should_yield_controls
        Whether ``len(source)``, ``source[i]``, iteration and `get_batch` include control cells.
    additional_obs
        obs columns to add to every element.
    include_barcodes
        Add each cell's name as ``"barcode"``.
    perturbation_features_file
        ``.csv``, ``.tsv`` or ``.npz`` file of features by perturbation name, used instead of one-hot vectors.
        Names are text: ``NA`` is a name, and ``1`` and ``1.0`` are different ones.
    cache_dir
        Folder for the cached store of an ``.h5ad`` file. None puts it beside the file, as
        ``<name>.lazypert.zarr``; in `cache_dir`, the name also contains a hash of the file's path.
        For a store at a URL, it is the folder on the local disk that keeps what is read; None keeps nothing.
    cache_size
        Bytes that stores at URLs may take in `cache_dir`; what was not used for longest is deleted.
    memory_limit
        Memory for the conversion of an ``.h5ad`` file.
    seed
        Seed of `get_batch`.
    storage_options
        Options for URLs; `lazypert.open` explains them.
    """

    file_path: str | Path | ZarrStore
    should_yield_controls: bool = True
    include_barcodes: bool = False

    def __post_init__(self) -> None:
        require_choice("output_space", self.output_space, OutputSpace)
        if self.output_space == "embedding" and self.embedding_key is None:
            raise ConfigError("embedding_key: got None, expected the name of an obsm entry (output_space='embedding').")
        if self.output_space == "gene" and self.hvg_col is None:
            raise ConfigError("hvg_col: got None, expected a boolean var column (output_space='gene').")
        is_column = self.control_col is None or isinstance(self.control_col, str)
        require(is_column, "control_col", self.control_col, "the name of an obs column, or None")
        if self.covariates is not None:
            object.__setattr__(self, "covariates", covariate_names(self.covariates))
        _ = self.roles, Budget.of(self.memory_limit), parse_bytes(self.cache_size, "cache_size")
        require_integer("seed", self.seed)
        is_mapping = self.storage_options is None or isinstance(self.storage_options, Mapping)
        kind = type(self.storage_options).__name__  # what it holds may be secret
        require(is_mapping, "storage_options", kind, "a dictionary of options, or None")
        for name in ("should_yield_controls", "include_barcodes"):
            require_flag(name, getattr(self, name))
        columns = tuple(require_names("additional_obs", self.additional_obs))
        require(len(set(columns)) == len(columns), "additional_obs", self.additional_obs, "each column once")
        object.__setattr__(self, "additional_obs", columns)

    @property
    def roles(self) -> Roles:
        """Roles of the obs columns."""
        return Roles(
            pert_col=self.pert_col,
            cell_type_col=self.cell_type_col,
            batch_col=self.batch_col,
            control_pert=self.control_pert,
            separator=self.separator,
            covariates=covariate_names(self.covariates or ()),
            rename_perturbations=self.rename_perturbations,
        )

    @property
    def elements(self) -> tuple[str, ...]:
        """Paths of the store's elements that the options name, such as ``"obs/batch"``."""
        columns = (self.pert_col, self.cell_type_col, self.batch_col, self.control_col)
        named = [f"obs/{name}" for name in (*columns, *self.roles.covariates, *self.additional_obs) if name is not None]
        named += [f"obsm/{self.embedding_key}"] * (self.embedding_key is not None)
        return (*named, f"layers/{self.layer}") if self.layer is not None else tuple(named)


def roles_of_store(roles: Roles, options: ScreenOptions) -> dict[str, Any]:
    """Roles of a store in place of those that the options leave at their defaults."""
    found: dict[str, Any] = {}
    for name in ("pert_col", "control_pert", "separator", "rename_perturbations", "cell_type_col", "batch_col"):
        own = getattr(roles, name)
        is_default = getattr(options, name) == ScreenOptions.__dataclass_fields__[name].default
        if is_default and (own is not None or (name.endswith("_col") and roles.pert_col is not None)):
            found[name] = own
    if options.covariates is None:
        found["covariates"] = roles.covariates
    return found


class PerturbationSourceKwargs(TypedDict, total=False):
    """Keyword arguments of ``ds.pert.source``: the fields of `PerturbationSourceConfig` without `file_path`."""

    pert_col: str
    cell_type_col: str | None
    batch_col: str | None
    control_pert: ControlLabels
    control_col: str | None
    separator: str | None
    covariates: str | tuple[str, ...] | None
    rename_perturbations: Renames | None
    output_space: OutputSpace
    hvg_col: str | None
    embedding_key: str | None
    layer: str | None
    should_yield_controls: bool
    additional_obs: tuple[str, ...]
    include_barcodes: bool
    perturbation_features_file: str | Path | None
    cache_dir: str | Path | None
    cache_size: int | str
    memory_limit: int | str
    seed: int
    storage_options: dict[str, Any] | None
