"""Entries of an experiment file: datasets, and what is held out of them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lazypert.errors import ConfigError, near_matches
from lazypert.screen.renames import check_renames

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DATASET_ROLES = (
    "pert_col", "control_pert", "control_col", "separator", "rename_perturbations", "cell_type_col", "batch_col",
    "covariates",
)  # fmt: skip
"""Roles that a dataset may have of its own, in place of those of the pipeline."""

TOML_SPLITS = ("train", "val", "test")
"""Splits as cell-load spells them."""

FEWSHOT_KEYS = ("val", "test")
"""Keys of a ``[fewshot."dataset.cell_type"]`` table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetEntry:
    """A line of ``[datasets]``, or a table ``[datasets.name]``.

    Parameters
    ----------
    name
        The name that the other sections use.
    path
        A file, a folder or a pattern; see `ExperimentConfig.dataset_files`.
    roles
        Columns and labels of this dataset, where they differ from those of the pipeline: any of `pert_col`,
        `control_pert`, `control_col`, `separator`, `rename_perturbations`, `cell_type_col`, `batch_col` and
        `covariates`.

    Raises
    ------
    ConfigError
        If the name or the path is empty or not text, or a role is unknown.

    Examples
    --------
    >>> DatasetEntry(name="replogle", path="screens/*.h5ad").name
    'replogle'
    """

    name: str
    path: str
    roles: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require_text("[datasets] name", self.name)
        if isinstance(self.path, os.PathLike):
            object.__setattr__(self, "path", os.fspath(self.path))
        _require_text(f"[datasets] {self.name!r}", self.path)
        for role in self.roles:
            if role not in DATASET_ROLES:
                raise ConfigError(
                    f"[datasets.{quote(self.name)}]: got the key {role!r}, expected 'path' or one of "
                    f"{', '.join(map(repr, DATASET_ROLES))}. {near_matches(role, DATASET_ROLES)}"
                )
        roles = {role: self._checked(role, value) for role, value in self.roles.items()}
        object.__setattr__(self, "roles", roles)

    def _checked(self, role: str, value: Any) -> Any:
        """Value of a role: text, a tuple of texts, or names of labels."""
        name = f"[datasets.{quote(self.name)}] {role}"
        if role == "rename_perturbations":
            renames = check_renames(value)
            return dict(renames) if isinstance(renames, tuple) else renames
        is_list = isinstance(value, list | tuple)
        if role == "covariates" and is_list and not value:
            return ()  # none, whatever the store was converted with
        may_be_list = role in ("control_pert", "covariates") and is_list and value
        for label in value if may_be_list else [value]:
            _require_text(name, label)
        return tuple(value) if is_list else value


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroshotEntry:
    """A line of ``[zeroshot]``: all cells of one cell type of a dataset go to one split.

    Parameters
    ----------
    dataset, cell_type
        Which cells.
    split
        ``"val"``, ``"test"`` or ``"train"``.

    Raises
    ------
    ConfigError
        If a name is empty or not text, or there is no such split.

    Examples
    --------
    >>> ZeroshotEntry(dataset="replogle", cell_type="jurkat", split="test").split
    'test'
    """

    dataset: str
    cell_type: str
    split: str

    def __post_init__(self) -> None:
        _require_text("[zeroshot] dataset", self.dataset)
        _require_text("[zeroshot] cell_type", self.cell_type)
        if str(self.split) not in TOML_SPLITS:
            raise ConfigError(
                f"[zeroshot] {self.key!r}: got {self.split!r}, expected one of "
                f"{', '.join(map(repr, TOML_SPLITS))}. {near_matches(str(self.split), TOML_SPLITS)}"
            )

    @property
    def key(self) -> str:
        """The entry's key in the TOML file."""
        return f"{self.dataset}.{self.cell_type}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FewshotEntry:
    """A ``[fewshot."dataset.cell_type"]`` table, which holds out some perturbations of one cell type.

    Parameters
    ----------
    dataset, cell_type
        Which cells.
    val_perturbations, test_perturbations
        Perturbations held out. The same one may be in both: see `assign_split`.

    Raises
    ------
    ConfigError
        If a name is empty or not text, or a list holds anything but text.

    Examples
    --------
    >>> FewshotEntry(dataset="replogle", cell_type="rpe1", test_perturbations=["AARS"]).test_perturbations
    ('AARS',)
    """

    dataset: str
    cell_type: str
    val_perturbations: tuple[str, ...] = ()
    test_perturbations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require_text("[fewshot] dataset", self.dataset)
        _require_text("[fewshot] cell_type", self.cell_type)
        for split in FEWSHOT_KEYS:
            name = f"{split}_perturbations"
            values: object = getattr(self, name)
            values = (values,) if isinstance(values, str) else values
            if not isinstance(values, list | tuple) or not all(isinstance(item, str) for item in values):
                raise ConfigError(
                    f"[fewshot.{quote(self.key)}] {split}: got {values!r}, expected a list of perturbation "
                    f'names in quotes, such as {split} = ["BRCA1", "TP53"].'
                )
            object.__setattr__(self, name, tuple(values))

    @property
    def key(self) -> str:
        """The entry's key in the TOML file."""
        return f"{self.dataset}.{self.cell_type}"


def split_key(key: str, datasets: Iterable[str]) -> tuple[str, str] | None:
    """Dataset and cell type of a key, or None if it lacks one of them.

    The longest declared dataset name wins; if none fits, the key is divided at the first dot.
    """
    declared = [name for name in datasets if key.startswith(f"{name}.")]
    dataset = max(declared, key=len) if declared else key.partition(".")[0]
    cell_type = key[len(dataset) + 1 :]
    return (dataset, cell_type) if dataset and cell_type else None


def quote(text: str) -> str:
    """Text as a TOML string."""
    # TOML has JSON's escapes, but also requires DEL to be escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _require_text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name}: got {value!r}, expected text that is not empty.")
