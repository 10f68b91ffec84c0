"""Reading and writing the TOML of an experiment."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lazypert.design.experiment_entries import (
    FEWSHOT_KEYS,
    DatasetEntry,
    FewshotEntry,
    ZeroshotEntry,
    quote,
    split_key,
)
from lazypert.errors import ConfigError, near_matches

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

SECTIONS = ("datasets", "training", "zeroshot", "fewshot", "controls")

CONTROL_KEYS = ("match", "fallback")
"""Keys of ``[controls]``, a section that cell-load does not have."""

SECTION_LIST = ", ".join(f"[{name}]" for name in SECTIONS)


def read_toml(file: Path) -> dict[str, Any]:
    """Fields of an `ExperimentConfig`, from a TOML file.

    Raises
    ------
    ConfigError
        If it is not TOML, or has a section, key or value that the schema does not have.
    """
    try:
        raw = tomllib.loads(file.read_bytes().decode())
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"This is not valid TOML: line {line} is not UTF-8. Save the file as UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f'This is not valid TOML: {error}. Names and paths need quotes, as in name = "path/to/screen.h5ad".'
        ) from error
    return _fields_of(raw)


def to_toml(
    datasets: Sequence[DatasetEntry],
    training_datasets: Sequence[str],
    zeroshot: Sequence[ZeroshotEntry],
    fewshot: Sequence[FewshotEntry],
    controls: Mapping[str, str | Sequence[str]],
) -> str:
    """TOML that `read_toml` reads back as the same fields.

    Raises
    ------
    ConfigError
        If a ``"dataset.cell_type"`` key would be read back as another dataset.
    """
    names = [entry.name for entry in datasets]
    held_out: list[ZeroshotEntry | FewshotEntry] = [*zeroshot, *fewshot]
    for entry in held_out:
        read_back = split_key(entry.key, names)
        if read_back != (entry.dataset, entry.cell_type):
            raise ConfigError(
                f"Cell type {entry.cell_type!r} of dataset {entry.dataset!r} cannot be written: the key "
                f"{entry.key!r} would be read as {read_back!r}, because the longest dataset name wins. "
                f"Rename one of the datasets."
            )
    lines = ["[datasets]", *(f"{quote(entry.name)} = {_dataset_value(entry)}" for entry in datasets)]
    lines += ["", "[training]", *(f'{quote(name)} = "train"' for name in training_datasets)]
    lines += ["", "[zeroshot]", *(f"{quote(zero.key)} = {quote(zero.split)}" for zero in zeroshot)]
    for few in fewshot:
        lines += ["", f"[fewshot.{quote(few.key)}]"]
        lines += [f"val = [{', '.join(map(quote, few.val_perturbations))}]"]
        lines += [f"test = [{', '.join(map(quote, few.test_perturbations))}]"]
    if controls:
        lines += ["", "[controls]", *(f"{key} = {_text_or_list(value)}" for key, value in controls.items())]
    return "\n".join(lines) + "\n"


def _fields_of(raw: dict[str, Any]) -> dict[str, Any]:
    for section, table in raw.items():
        if section not in SECTIONS:
            raise ConfigError(
                f"section: got [{section}], expected one of {SECTION_LIST}. {near_matches(section, SECTIONS)}"
            )
        if not isinstance(table, dict):
            raise ConfigError(f"{section}: got {table!r}, expected a section, which begins with a line [{section}].")
    datasets = raw.get("datasets", {})
    for name, mode in raw.get("training", {}).items():
        if mode != "train":
            raise ConfigError(
                f"[training] {quote(name)}: got {mode!r}, expected 'train'. Hold out cell types in [zeroshot] and "
                f"perturbations in [fewshot], and omit datasets that are not trained on."
            )
    controls = raw.get("controls", {})
    for key in controls:
        if key not in CONTROL_KEYS:
            raise ConfigError(
                f"[controls]: got the key {key!r}, expected only 'match' and 'fallback'. "
                f"{near_matches(key, CONTROL_KEYS)}"
            )
    keys = {section: _entry_keys(section, raw.get(section, {}), datasets) for section in ("zeroshot", "fewshot")}
    return {
        "datasets": tuple(_dataset_entry(name, value) for name, value in datasets.items()),
        "training_datasets": tuple(raw.get("training", {})),
        "zeroshot": tuple(ZeroshotEntry(**cells, split=split) for cells, split in keys["zeroshot"]),
        "fewshot": tuple(_fewshot_entry(cells, table) for cells, table in keys["fewshot"]),
        **controls,
    }


def _dataset_entry(name: str, value: Any) -> DatasetEntry:
    if not isinstance(value, dict):
        return DatasetEntry(name=name, path=value)
    if "path" not in value:
        raise ConfigError(
            f'[datasets.{quote(name)}]: got no path, expected a line path = "path/to/screen.h5ad". If the name has a '
            "dot, put it in quotes."
        )
    return DatasetEntry(name=name, path=value["path"], roles={key: v for key, v in value.items() if key != "path"})


def _dataset_value(entry: DatasetEntry) -> str:
    """Value of a dataset in TOML: its path, or a table if it has roles of its own."""
    if not entry.roles:
        return quote(entry.path)
    pairs = [f"path = {quote(entry.path)}"]
    for role, value in entry.roles.items():
        if isinstance(value, Mapping):
            text = f"{{ {', '.join(f'{quote(label)} = {quote(name)}' for label, name in value.items())} }}"
        else:
            text = _text_or_list(value)
        pairs.append(f"{role} = {text}")
    return f"{{ {', '.join(pairs)} }}"


def _text_or_list(value: str | Sequence[str]) -> str:
    return quote(value) if isinstance(value, str) else f"[{', '.join(map(quote, value))}]"


def _entry_keys(section: str, table: dict[str, Any], datasets: Iterable[str]) -> list[tuple[dict[str, str], Any]]:
    """Dataset and cell type of each key of a section, with the key's value."""
    entries = []
    for key, value in table.items():
        names = split_key(key, datasets)
        if names is None:
            inner = next(iter(value), "cell_type") if isinstance(value, dict) else "cell_type"
            raise ConfigError(
                f'[{section}]: got the key {key!r}, expected "dataset.cell_type" as one key in quotes. '
                f"Without quotes, TOML takes the dot as the start of a subsection. "
                f"Write {quote(f'{key}.{inner}')}."
            )
        entries.append(({"dataset": names[0], "cell_type": names[1]}, value))
    return entries


def _fewshot_entry(cells: dict[str, str], table: Any) -> FewshotEntry:
    label = f"[fewshot.{quote('.'.join(cells.values()))}]"
    if not isinstance(table, dict):
        raise ConfigError(
            f"{label}: got {table!r}, expected a section with val = [...] and test = [...]. "
            f"To hold out the whole cell type, use [zeroshot]."
        )
    for name in table:
        if name not in FEWSHOT_KEYS:
            raise ConfigError(
                f"{label}: got the key {name!r}, expected only 'val' and 'test'. "
                f"{near_matches(name, FEWSHOT_KEYS)} Perturbations in neither list go to train."
            )
    return FewshotEntry(**cells, val_perturbations=table.get("val", ()), test_perturbations=table.get("test", ()))
