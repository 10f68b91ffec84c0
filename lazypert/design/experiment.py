"""Experiments in cell-load's schema: a TOML file that names the screens to train on and what to hold out.

    [datasets]                          # a file, a folder of .h5/.h5ad files, or a pattern
    replogle = "screens/{k562,rpe1}.h5ad"

    [datasets.adamson]                  # one with columns and labels of its own
    path = "adamson.h5ad"
    pert_col = "gene"
    control_pert = ["ctrl", "NT*"]

    [training]                          # all other cells of these datasets go to train
    replogle = "train"

    [zeroshot]                          # whole cell types
    "replogle.jurkat" = "test"

    [fewshot."replogle.rpe1"]           # perturbations of one cell type; the others go to train
    val = ["AARS"]
    test = ["NUP107", "RPUSD4"]

    [controls]                          # what controls share with the cells that they are matched with
    match = ["donor", "plate"]
    fallback = "error"

This module needs only the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazypert._internal.config import Config
from lazypert._internal.paths import is_url, local_path, location
from lazypert.design.experiment_data import absolute_path, find_dataset, find_files
from lazypert.design.experiment_entries import DatasetEntry, FewshotEntry, ZeroshotEntry, quote
from lazypert.design.experiment_file import SECTION_LIST, read_toml, to_toml
from lazypert.design.match_options import match_names
from lazypert.errors import ConfigError, ExperimentFileNotFoundError, near_matches

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from lazypert.design.match_options import Fallback

__all__ = [
    "DatasetEntry",
    "ExperimentConfig",
    "FewshotEntry",
    "ZeroshotEntry",
    "load_experiment_config",
]


_COPY = "Experiment files are local: copy it."


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentConfig(Config):
    """Which screens an experiment trains on, and what it holds out.

    Parameters
    ----------
    datasets
        The screens and where they are. A dataset that no other section names is allowed but unused.
    training_datasets
        Names of the datasets whose cells go to train unless held out.
    zeroshot
        Cell types held out entirely.
    fewshot
        Cell types with some perturbations held out.
    match, fallback
        Keys that controls share with cells, and what to do about a cell without such controls; see
        `lazypert.design.controls.ControlMappingConfig`. None leaves both to the pipeline.
    base_dir
        Folder that relative paths start from; `load_experiment_config` sets it to the TOML file's. None means
        the working directory. It is ignored when configs are compared.

    Raises
    ------
    ConfigError
        If the sections do not fit together, see `validate`; or `match` or `fallback` has an invalid value.

    Examples
    --------
    >>> config = ExperimentConfig(
    ...     datasets=(DatasetEntry(name="replogle", path="screens"),),
    ...     training_datasets=("replogle",),
    ...     zeroshot=(ZeroshotEntry(dataset="replogle", cell_type="jurkat", split="test"),),
    ... )
    >>> config.get_zeroshot_celltypes("replogle")
    {'jurkat': 'test'}
    """

    datasets: tuple[DatasetEntry, ...] = ()
    training_datasets: tuple[str, ...] = ()
    zeroshot: tuple[ZeroshotEntry, ...] = ()
    fewshot: tuple[FewshotEntry, ...] = ()
    match: tuple[str, ...] | None = None
    fallback: Fallback = "drop_last"
    base_dir: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        kinds = {
            "datasets": DatasetEntry,
            "training_datasets": str,
            "zeroshot": ZeroshotEntry,
            "fewshot": FewshotEntry,
        }
        for name, kind in kinds.items():
            values: object = getattr(self, name)
            if not isinstance(values, list | tuple) or not all(isinstance(item, kind) for item in values):
                raise ConfigError(f"{name}: got {values!r}, expected a tuple of {kind.__name__}.")
            object.__setattr__(self, name, tuple(values))
        object.__setattr__(self, "match", match_names(self.match, self.fallback))
        if self.base_dir is not None:
            object.__setattr__(self, "base_dir", local_path("base_dir", self.base_dir, _COPY))
        self.validate()

    def __repr__(self) -> str:
        return (
            f"ExperimentConfig({len(self.datasets)} datasets, {len(self.training_datasets)} of them for training; "
            f"{len(self.zeroshot)} zero-shot and {len(self.fewshot)} few-shot cell types)"
        )

    def get_all_datasets(self) -> set[str]:
        """Return the names of the datasets that are trained on or have something held out."""
        zeroshot = {entry.dataset for entry in self.zeroshot}
        return {*self.training_datasets, *zeroshot, *(entry.dataset for entry in self.fewshot)}

    def get_zeroshot_celltypes(self, dataset: str) -> dict[str, str]:
        """Return the cell types of a dataset that are held out entirely, and their split as the TOML spells it."""
        return {entry.cell_type: entry.split for entry in self.zeroshot if entry.dataset == dataset}

    def get_fewshot_celltypes(self, dataset: str) -> dict[str, FewshotEntry]:
        """Return the cell types of a dataset with some perturbations held out."""
        return {entry.cell_type: entry for entry in self.fewshot if entry.dataset == dataset}

    def validate(self) -> None:
        """Check that the sections fit together, as construction does; files are not checked.

        Raises
        ------
        ConfigError
            If a name is declared twice, a dataset has no path, or a cell type is both zero-shot and few-shot
            (in cell-load, zero-shot silently wins).
        """
        names = [entry.name for entry in self.datasets]
        _require_unique("datasets", names)
        _require_unique("training", self.training_datasets)
        _require_unique("zeroshot", (entry.key for entry in self.zeroshot))
        _require_unique("fewshot", (entry.key for entry in self.fewshot))
        for name in sorted(self.get_all_datasets() - set(names)):
            raise ConfigError(
                f"Dataset {name!r} is used in {' and '.join(self._sections_naming(name))}, but [datasets] "
                f"gives no path for it. {near_matches(name, names)} Add a line {quote(name)} = "
                f'"path/to/screen.h5ad" to [datasets], or correct the name.'
            )
        fewshot = {(entry.dataset, entry.cell_type) for entry in self.fewshot}
        for entry in self.zeroshot:
            if (entry.dataset, entry.cell_type) in fewshot:
                raise ConfigError(
                    f"Cell type {entry.cell_type!r} of dataset {entry.dataset!r} is in both [zeroshot] "
                    f"(all cells go to {entry.split!r}) and [fewshot] (some perturbations are held out). "
                    f"Remove it from one of them."
                )

    def _sections_naming(self, dataset: str) -> list[str]:
        names = {
            "[training]": self.training_datasets,
            "[zeroshot]": tuple(entry.dataset for entry in self.zeroshot),
            "[fewshot]": tuple(entry.dataset for entry in self.fewshot),
        }
        return [section for section, used in names.items() if dataset in used]

    def dataset_path(self, name: str) -> str:
        """Return the path of a dataset as ``[datasets]`` gives it.

        Raises
        ------
        ConfigError
            If there is no such dataset.
        """
        paths = {entry.name: entry.path for entry in self.datasets}
        if name not in paths:
            raise ConfigError(f"dataset: got {name!r}, expected a name in [datasets]. {near_matches(name, paths)}")
        return paths[name]

    def dataset_roles(self, name: str) -> dict[str, Any]:
        """Return the roles that a dataset has in place of those of the pipeline."""
        self.dataset_path(name)
        return dict(next(entry.roles for entry in self.datasets if entry.name == name))

    def dataset_files(self, name: str) -> list[Path | str]:
        """Return the files of a dataset, as cell-load finds them.

        A file stands for itself, as does a folder that is a Zarr store. Any other folder stands for its
        ``.h5`` files, then its ``.h5ad`` files, each sorted. A path that does not exist and has any of
        ``* ? [ ] { }`` is a pattern: ``{a,b}`` stands for both, in that order, ``**`` stands for any depth of
        folders, and a pattern that does not end in ``.h5``, ``.h5ad`` or ``.zarr`` for the files in the
        folders that it matches.

        A URL of a store stands for itself. ``~`` and ``$VARIABLES`` are replaced.

        Relative paths start from the folder of the TOML file. If nothing is there, they start from the working
        directory, as in cell-load; a warning (logger ``lazypert``) says so, and also if both have such files. Two
        files with the same stem are both kept, whereas cell-load keeps only the last.

        Parameters
        ----------
        name
            A name declared in ``[datasets]``.

        Returns
        -------
        list of Path, or of the str of a URL
            At least one, without duplicates.

        Raises
        ------
        ConfigError
            If there is no such dataset, or its path has a variable that is not set.
        ExperimentFileNotFoundError
            If no file is found.
        """
        path = location(f"[datasets] {name!r}", self.dataset_path(name))
        base = self.base_dir if self.base_dir is not None else Path()
        files = find_dataset(name, path, base)
        if not files:
            raise ExperimentFileNotFoundError(
                f"Dataset {name!r} has no files: got {path!r}, searched from {str(base.absolute())!r} and from the "
                "working directory; expected a file, a folder with .h5 or .h5ad files, or a pattern that matches some. "
                "Correct the path in [datasets]; relative paths start from the TOML file's folder, or else from the "
                "working directory."
            )
        return files

    def save_config(self, path: str | os.PathLike[str]) -> None:
        """Write the experiment as TOML that `load_experiment_config` reads back as an equal config.

        Relative paths are made absolute when a config loaded from one folder is saved into another.
        An existing file is replaced.

        Raises
        ------
        ConfigError
            If TOML's ``"dataset.cell_type"`` keys cannot express an entry.

        Examples
        --------
        >>> import tempfile
        >>> config = ExperimentConfig(datasets=(DatasetEntry(name="odd name", path="a.h5ad"),))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config.save_config(f"{folder}/experiment.toml")
        ...     load_experiment_config(f"{folder}/experiment.toml") == config
        True
        """
        target = local_path("path", path, _COPY)
        datasets = [replace(entry, path=self._path_from(target, entry.path)) for entry in self.datasets]
        controls = {} if self.match is None else {"match": self.match, "fallback": self.fallback}
        text = to_toml(datasets, self.training_datasets, self.zeroshot, self.fewshot, controls)
        target.write_text(text, encoding="utf-8", newline="\n")

    def _path_from(self, target: Path, path: str) -> str:
        """Path of a dataset as it is written into the TOML file `target`."""
        if self.base_dir is None:
            return path
        found = location("[datasets] path", path)
        if is_url(found) or Path(found).is_absolute():
            return path
        base = self.base_dir.resolve()
        if not find_files(found, base) and find_files(found, Path.cwd()):
            base = Path.cwd()
        return path if base == target.parent.resolve() else absolute_path(path, base)


def load_experiment_config(path: str | os.PathLike[str]) -> ExperimentConfig:
    """Read an experiment from a TOML file in cell-load's schema.

    In ``"dataset.cell_type"`` the longest dataset name declared in ``[datasets]`` wins, so both may
    contain dots; if none fits, the key is divided at the first dot.

    Parameters
    ----------
    path
        The TOML file. Its folder becomes `ExperimentConfig.base_dir`.

    Raises
    ------
    ExperimentFileNotFoundError
        If there is no such file.
    ConfigError
        If it is not TOML, has a section, key or value that the schema does not have, or its sections
        contradict one another. cell-load silently ignores what it does not know, and trains on cells
        that were meant to be held out.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "experiment.toml")
    ...     _ = file.write_text('[datasets]\\na = "a.h5ad"\\n[zeroshot]\\n"a.K562" = "val"\\n')
    ...     load_experiment_config(file).zeroshot
    (ZeroshotEntry(dataset='a', cell_type='K562', split='val'),)
    """
    file = local_path("path", path, _COPY)
    if not file.is_file():
        raise ExperimentFileNotFoundError(
            f"No experiment file {str(file)!r} (looked in {str(file.parent.absolute())!r}); "
            f"expected a TOML file with the sections {SECTION_LIST}."
        )
    try:
        return ExperimentConfig(**read_toml(file), base_dir=file.absolute().parent)
    except ConfigError as error:
        raise ConfigError(f"In {str(file)!r}: {error}") from error


def _require_unique(section: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ConfigError(f"[{section}]: got {name!r} twice, expected each name once. Remove one of them.")
        seen.add(name)
