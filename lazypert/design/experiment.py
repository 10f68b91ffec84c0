"""Experiments as cell-load writes them: a TOML file that says which screens train and what is held out.

    [datasets]                          # a file, a folder of .h5/.h5ad files, or a pattern
    replogle = "screens/{k562,rpe1}.h5ad"

    [training]                          # all else in these datasets trains
    replogle = "train"

    [zeroshot]                          # whole cell types
    "replogle.jurkat" = "test"

    [fewshot."replogle.rpe1"]           # perturbations of one cell type; the others train
    val = ["AARS"]
    test = ["NUP107", "RPUSD4"]

Reading one needs the standard library only.
"""

from __future__ import annotations

import glob
import json
import os
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lazypert.errors import ConfigError, near_matches

if TYPE_CHECKING:
    from collections.abc import Iterable
from lazypert.errors import ExperimentFileNotFoundError

# In the TOML, as cell-load spells them; `assign_split` answers in lazypert's words.
_SPLITS: dict[str, Split] = {"train": "train", "val": "valid", "test": "test"}


_SECTIONS = ("datasets", "training", "zeroshot", "fewshot")


_SECTION_LIST = ", ".join(f"[{name}]" for name in _SECTIONS)


_FEWSHOT_KEYS = ("val", "test")


_SUFFIXES = (".h5", ".h5ad")


_PATTERN = re.compile(r"[*?\[\]{}]")


Split = Literal["train", "valid", "test"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetEntry:
    """A line of ``[datasets]``.

    Parameters
    ----------
    name
        What the other sections call it.
    path
        A file, a folder or a pattern; see `ExperimentConfig.dataset_files`.

    Raises
    ------
    ConfigError
        If either is empty or not text.

    Examples
    --------
    >>> DatasetEntry(name="replogle", path="screens/*.h5ad").name
    'replogle'
    """

    name: str
    path: str

    def __post_init__(self) -> None:
        _check_text("A dataset's name", self.name)
        if isinstance(self.path, os.PathLike):
            object.__setattr__(self, "path", os.fspath(self.path))
        _check_text(f"The path of dataset {self.name!r}", self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroshotEntry:
    """A line of ``[zeroshot]``: all cells of a cell type of a dataset go to one split.

    Parameters
    ----------
    dataset, cell_type
        Which cells.
    split
        ``"val"``, ``"test"`` or ``"train"``.

    Raises
    ------
    ConfigError
        If a name is empty or not text, or the split is another.

    Examples
    --------
    >>> ZeroshotEntry(dataset="replogle", cell_type="jurkat", split="test").split
    'test'
    """

    dataset: str
    cell_type: str
    split: str

    def __post_init__(self) -> None:
        _check_names("zeroshot", self)
        if str(self.split) not in _SPLITS:
            raise ConfigError(
                f"[zeroshot] {_key(self)!r} has split {self.split!r}; expected one of "
                f"{', '.join(map(repr, _SPLITS))}. {near_matches(str(self.split), _SPLITS)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class FewshotEntry:
    """A ``[fewshot."dataset.cell_type"]`` table: some perturbations of a cell type are held out.

    Parameters
    ----------
    dataset, cell_type
        Which cells.
    val_perturbations, test_perturbations
        Perturbations held out. One may be in both: see `assign_split`.

    Raises
    ------
    ConfigError
        If a name is empty or not text, or a list is not one of texts.

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
        _check_names("fewshot", self)
        for split in _FEWSHOT_KEYS:
            name = f"{split}_perturbations"
            values: object = getattr(self, name)
            if not isinstance(values, list | tuple) or not all(isinstance(item, str) for item in values):
                raise ConfigError(
                    f"[fewshot.{_quote(_key(self))}] {split} is {values!r}; expected a list of perturbation "
                    f'names, each in quotes, such as {split} = ["BRCA1", "TP53"].'
                )
            object.__setattr__(self, name, tuple(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentConfig:
    """Which screens an experiment trains on, and what it holds out.

    Parameters
    ----------
    datasets
        The screens and where they are. One that no other section names is allowed, and unused.
    training_datasets
        Names of those whose cells train unless held out.
    zeroshot
        Cell types held out whole.
    fewshot
        Cell types some of whose perturbations are held out.
    base_dir
        The folder that relative paths start from; `load_experiment_config` gives the TOML file's.
        None: the working directory. It is no part of what makes two configs equal.

    Raises
    ------
    ConfigError
        If the sections do not fit together; see `validate`.

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
                raise ConfigError(f"{name} is {values!r}; expected a tuple of {kind.__name__}.")
            object.__setattr__(self, name, tuple(values))
        if self.base_dir is not None:
            object.__setattr__(self, "base_dir", Path(self.base_dir))
        self.validate()

    def get_all_datasets(self) -> set[str]:
        """Return the names of the datasets that train or have something held out."""
        zeroshot = {entry.dataset for entry in self.zeroshot}
        return {*self.training_datasets, *zeroshot, *(entry.dataset for entry in self.fewshot)}

    def get_zeroshot_celltypes(self, dataset: str) -> dict[str, str]:
        """Return the cell types of a dataset that are held out whole, and their split in TOML's words."""
        return {entry.cell_type: entry.split for entry in self.zeroshot if entry.dataset == dataset}

    def get_fewshot_celltypes(self, dataset: str) -> dict[str, FewshotEntry]:
        """Return the cell types of a dataset some of whose perturbations are held out."""
        return {entry.cell_type: entry for entry in self.fewshot if entry.dataset == dataset}

    def validate(self) -> None:
        """Check that the sections fit together. Construction has done so; files are not looked at.

        Raises
        ------
        ConfigError
            If a name is declared twice, a dataset has no path, or a cell type is both zero-shot and few-shot
            (cell-load lets zero-shot win in silence).
        """
        names = [entry.name for entry in self.datasets]
        _check_unique("datasets", names)
        _check_unique("training", self.training_datasets)
        _check_unique("zeroshot", map(_key, self.zeroshot))
        _check_unique("fewshot", map(_key, self.fewshot))
        for name in sorted(self.get_all_datasets() - set(names)):
            raise ConfigError(
                f"Dataset {name!r} is used in {' and '.join(self._sections_naming(name))}, but [datasets] "
                f"gives no path for it. {near_matches(name, names)} Add a line {_quote(name)} = "
                f'"path/to/screen.h5ad" to [datasets], or correct the name.'
            )
        few = {(entry.dataset, entry.cell_type) for entry in self.fewshot}
        for entry in self.zeroshot:
            if (entry.dataset, entry.cell_type) in few:
                raise ConfigError(
                    f"Cell type {entry.cell_type!r} of dataset {entry.dataset!r} is in both [zeroshot] "
                    f"(all cells go to {entry.split!r}) and [fewshot] (some perturbations are held out); "
                    f"expected one of them. Remove it from the other."
                )

    def _sections_naming(self, dataset: str) -> list[str]:
        used = {
            "[training]": self.training_datasets,
            "[zeroshot]": tuple(entry.dataset for entry in self.zeroshot),
            "[fewshot]": tuple(entry.dataset for entry in self.fewshot),
        }
        return [section for section, names in used.items() if dataset in names]

    def dataset_files(self, name: str) -> list[Path]:
        """Return the files of a dataset, as cell-load would find them.

        A file is itself. A folder gives its ``.h5`` files, then its ``.h5ad`` files, each sorted (a
        folder that is a Zarr store is itself). A path with any of ``* ? [ ] { }`` that does not exist as it
        stands is a pattern: ``{a,b}`` stands for both, in that order, ``**`` for any depth of folders,
        and a pattern that does not end in ``.h5``, ``.h5ad`` or ``.zarr`` means the files in the folders
        it matches.

        Unlike cell-load, relative paths start from the folder of the TOML file, not the working
        directory, and two files of the same stem are both kept, where cell-load keeps the last.

        Parameters
        ----------
        name
            A name declared in ``[datasets]``.

        Returns
        -------
        list of Path
            At least one, each once.

        Raises
        ------
        ConfigError
            If there is no such dataset.
        ExperimentFileNotFoundError
            If no file is found.
        """
        path = self._path_of(name)
        base = self.base_dir if self.base_dir is not None else Path()
        found = list(dict.fromkeys(_find_files(path, base)))
        if not found:
            raise ExperimentFileNotFoundError(
                f"Dataset {name!r} has no files: {path!r}, sought from {str(base.absolute())!r}, gave none; "
                f"expected a file, a folder with .h5 or .h5ad files, or a pattern that matches some. "
                f"Correct the path in [datasets]; relative ones start from the TOML file's folder."
            )
        return found

    def _path_of(self, name: str) -> str:
        paths = {entry.name: entry.path for entry in self.datasets}
        if name not in paths:
            raise ConfigError(f"There is no dataset {name!r} in [datasets]. {near_matches(name, paths)}")
        return paths[name]

    def save_config(self, path: str | os.PathLike[str]) -> None:
        """Write the experiment as TOML, so that `load_experiment_config` gives it back.

        A config loaded from one folder and saved into another has its relative paths made absolute.
        An existing file is replaced.

        Raises
        ------
        ConfigError
            If TOML's ``"dataset.cell_type"`` keys cannot say what an entry means.

        Examples
        --------
        >>> import tempfile
        >>> config = ExperimentConfig(datasets=(DatasetEntry(name="odd name", path="a.h5ad"),))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config.save_config(f"{folder}/experiment.toml")
        ...     load_experiment_config(f"{folder}/experiment.toml") == config
        True
        """
        target = Path(path)
        names = [entry.name for entry in self.datasets]
        held_out: list[ZeroshotEntry | FewshotEntry] = [*self.zeroshot, *self.fewshot]
        for entry in held_out:
            read = _split_key(_key(entry), names)
            if read != (entry.dataset, entry.cell_type):
                raise ConfigError(
                    f"Cell type {entry.cell_type!r} of dataset {entry.dataset!r} cannot be written: the key "
                    f"{_key(entry)!r} would be read as {read!r}, since the longest dataset name wins. "
                    f"Rename one of the datasets."
                )
        lines = ["[datasets]"]
        lines += [f"{_quote(entry.name)} = {_quote(self._portable(entry.path, target))}" for entry in self.datasets]
        lines += ["", "[training]", *(f'{_quote(name)} = "train"' for name in self.training_datasets)]
        lines += ["", "[zeroshot]", *(f"{_quote(_key(zero))} = {_quote(zero.split)}" for zero in self.zeroshot)]
        for few in self.fewshot:
            lines += ["", f"[fewshot.{_quote(_key(few))}]"]
            lines += [f"val = [{', '.join(map(_quote, few.val_perturbations))}]"]
            lines += [f"test = [{', '.join(map(_quote, few.test_perturbations))}]"]
        target.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")

    def _portable(self, path: str, target: Path) -> str:
        if self.base_dir is None or Path(path).is_absolute():
            return path
        base = self.base_dir.resolve()
        if base == target.parent.resolve():
            return path
        if _PATTERN.search(path) and _PATTERN.search(str(base)):
            raise ConfigError(
                f"The pattern {path!r} cannot be made absolute: its folder {str(base)!r} itself has pattern "
                f"characters. Save into that folder, or give an absolute path."
            )
        return str(base / path)


def load_experiment_config(path: str | os.PathLike[str]) -> ExperimentConfig:
    """Read an experiment from a TOML file in cell-load's schema.

    In ``"dataset.cell_type"`` the longest dataset name declared in ``[datasets]`` wins, so both may
    contain dots; when none fits, the first dot divides.

    Parameters
    ----------
    path
        The TOML file. Its folder becomes `ExperimentConfig.base_dir`.

    Raises
    ------
    ExperimentFileNotFoundError
        If there is no such file.
    ConfigError
        If it is not TOML, has a section, key or value that the schema does not know, or its sections
        contradict one another. cell-load passes over unknown ones in silence, and trains on what
        was meant to be held out.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "experiment.toml")
    ...     _ = file.write_text('[datasets]\\na = "a.h5ad"\\n[zeroshot]\\n"a.K562" = "val"\\n')
    ...     load_experiment_config(file).zeroshot
    (ZeroshotEntry(dataset='a', cell_type='K562', split='val'),)
    """
    file = Path(path)
    if not file.is_file():
        raise ExperimentFileNotFoundError(
            f"There is no experiment file {str(file)!r} (looked in {str(file.parent.absolute())!r}); "
            f"expected a TOML file with the sections {_SECTION_LIST}."
        )
    try:
        return _from_toml(_read_toml(file), file.absolute().parent)
    except ConfigError as error:
        raise ConfigError(f"In {str(file)!r}: {error}") from error


def assign_split(
    config: ExperimentConfig, dataset: str, cell_type: str, perturbation: str, *, is_control: bool
) -> Split | None:
    """Return the split of the cells of one perturbation of one cell type of one dataset.

    ======================================  =====================================
    the cell type is                        its cells go to
    ======================================  =====================================
    in ``[zeroshot]``                       that split, controls too
    in ``[fewshot]``: a control             train
    in ``[fewshot]``: listed in ``test``    test, also if listed in ``val``
    in ``[fewshot]``: listed in ``val``     valid
    in ``[fewshot]``: any other             train, also if not in ``[training]``
    neither, dataset in ``[training]``      train
    neither, dataset not in ``[training]``  None: not used
    ======================================  =====================================

    Perturbed cells go where cell-load puts them, with one exception: a perturbation in both lists is
    in both of cell-load's splits, and here in ``test`` only, so that no model is chosen on what it is
    tested on. Controls differ: cell-load hands a held-out cell type's controls out in every split
    (those of a zero-shot cell type in train as well); here each control cell has one split. A control
    listed in ``val`` or ``test`` stays a control, as in cell-load.

    Parameters
    ----------
    config
        The experiment.
    dataset
        A name declared in ``[datasets]``.
    cell_type, perturbation
        Labels as in the screen.
    is_control
        Whether `perturbation` is the control.

    Raises
    ------
    ConfigError
        If the experiment has no such dataset.

    Examples
    --------
    >>> config = ExperimentConfig(
    ...     datasets=(DatasetEntry(name="a", path="a.h5ad"),),
    ...     fewshot=(FewshotEntry(dataset="a", cell_type="K562", val_perturbations=("TP53",)),),
    ... )
    >>> assign_split(config, "a", "K562", "TP53", is_control=False)
    'valid'
    >>> assign_split(config, "a", "RPE1", "TP53", is_control=False) is None
    True
    """
    # Raises for a dataset that is not declared: a misspelt one would otherwise not be used, silently.
    config._path_of(dataset)
    split = config.get_zeroshot_celltypes(dataset).get(cell_type)
    if split is not None:
        return _SPLITS[split]
    entry = config.get_fewshot_celltypes(dataset).get(cell_type)
    if entry is None:
        return "train" if dataset in config.training_datasets else None
    if is_control:
        return "train"
    if perturbation in entry.test_perturbations:
        return "test"
    return "valid" if perturbation in entry.val_perturbations else "train"


# -- reading TOML ---------------------------------------------------------------------------------


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_bytes().decode())
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"This is not valid TOML: line {line} is not UTF-8. Save it as UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f'This is not valid TOML: {error}. Names and paths need quotes, as in name = "path/to/screen.h5ad".'
        ) from error


def _from_toml(raw: dict[str, Any], base_dir: Path) -> ExperimentConfig:
    for section, table in raw.items():
        if section not in _SECTIONS:
            raise ConfigError(
                f"There is no section [{section}]; expected {_SECTION_LIST}. {near_matches(section, _SECTIONS)}"
            )
        if not isinstance(table, dict):
            raise ConfigError(f"{section} is {table!r}; expected a section, that is a line [{section}].")
    datasets = raw.get("datasets", {})
    for name, mode in raw.get("training", {}).items():
        if mode != "train":
            raise ConfigError(
                f"[training] {_quote(name)} is {mode!r}; expected 'train'. Hold cell types out in "
                f"[zeroshot], perturbations in [fewshot], and leave out a dataset that does not train."
            )
    keys = {section: _entry_keys(section, raw.get(section, {}), datasets) for section in ("zeroshot", "fewshot")}
    return ExperimentConfig(
        datasets=tuple(DatasetEntry(name=name, path=path) for name, path in datasets.items()),
        training_datasets=tuple(raw.get("training", {})),
        zeroshot=tuple(ZeroshotEntry(**where, split=split) for where, split in keys["zeroshot"]),
        fewshot=tuple(_fewshot_entry(where, table) for where, table in keys["fewshot"]),
        base_dir=base_dir,
    )


def _entry_keys(section: str, table: dict[str, Any], datasets: Iterable[str]) -> list[tuple[dict[str, str], Any]]:
    """Return the dataset and cell type of each key of a section, with the key's value."""
    entries = []
    for key, value in table.items():
        parts = _split_key(key, datasets)
        if parts is None:
            inner = next(iter(value), "cell_type") if isinstance(value, dict) else "cell_type"
            raise ConfigError(
                f'[{section}] has the key {key!r}; expected "dataset.cell_type" as one key in quotes. '
                f"Without quotes TOML takes the dot for a section of its own. "
                f"Write {_quote(f'{key}.{inner}')}."
            )
        entries.append(({"dataset": parts[0], "cell_type": parts[1]}, value))
    return entries


def _fewshot_entry(where: dict[str, str], table: Any) -> FewshotEntry:
    label = f"[fewshot.{_quote('.'.join(where.values()))}]"
    if not isinstance(table, dict):
        raise ConfigError(
            f"{label} is {table!r}; expected a section with val = [...] and test = [...]. For a whole "
            f"cell type use [zeroshot]."
        )
    for name in table:
        if name not in _FEWSHOT_KEYS:
            raise ConfigError(
                f"{label} has the key {name!r}; expected 'val' and 'test' only. "
                f"{near_matches(name, _FEWSHOT_KEYS)} Perturbations in neither list train."
            )
    return FewshotEntry(**where, val_perturbations=table.get("val", ()), test_perturbations=table.get("test", ()))


def _split_key(key: str, datasets: Iterable[str]) -> tuple[str, str] | None:
    declared = [name for name in datasets if key.startswith(f"{name}.")]
    dataset = max(declared, key=len) if declared else key.partition(".")[0]
    cell_type = key[len(dataset) + 1 :]
    return (dataset, cell_type) if dataset and cell_type else None


def _key(entry: ZeroshotEntry | FewshotEntry) -> str:
    return f"{entry.dataset}.{entry.cell_type}"


def _quote(text: str) -> str:
    # JSON's escapes are TOML's too, but for DEL, which TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


# -- finding files --------------------------------------------------------------------------------


def _find_files(path: str, base: Path) -> list[Path]:
    place = base / path
    if place.is_file() or (place / "zarr.json").is_file():
        return [place]
    if place.exists() or not _PATTERN.search(path):
        return _files_in(place)
    found: list[Path] = []
    for pattern in _expand_braces(path):
        whole = pattern.endswith((*_SUFFIXES, ".zarr"))
        for match in sorted(glob.glob(pattern.rstrip("/"), root_dir=base, recursive=True)):  # noqa: PTH207 - Path.glob takes no absolute one
            found += [base / match] if whole else _files_in(base / match)
    return found


def _files_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [file for suffix in _SUFFIXES for file in sorted(folder.iterdir()) if file.suffix == suffix]


def _expand_braces(pattern: str) -> list[str]:
    group = re.search(r"\{([^{}]+)\}", pattern)
    if group is None:
        return [pattern]
    before, after = pattern[: group.start()], pattern[group.end() :]
    return [expanded for option in group[1].split(",") for expanded in _expand_braces(before + option.strip() + after)]


# -- checks ---------------------------------------------------------------------------------------


def _check_names(section: str, entry: ZeroshotEntry | FewshotEntry) -> None:
    _check_text(f"A {section} entry's dataset", entry.dataset)
    _check_text(f"A {section} entry's cell type", entry.cell_type)


def _check_text(what: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{what} is {value!r}; expected text that is not empty.")


def _check_unique(section: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ConfigError(f"[{section}] has {name!r} twice; expected each once. Remove one of them.")
        seen.add(name)
