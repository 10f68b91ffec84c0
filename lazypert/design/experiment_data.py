"""Finding the files of an experiment's datasets, as cell-load does."""

from __future__ import annotations

import glob
import re
from typing import TYPE_CHECKING

from lazypert.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_SUFFIXES = (".h5", ".h5ad")

_PATTERN = re.compile(r"[*?\[\]{}]")


def find_files(path: str, base: Path) -> list[Path]:
    """Files of a dataset, without duplicates; see `ExperimentConfig.dataset_files` for the rules.

    Parameters
    ----------
    path
        A file, a folder or a pattern.
    base
        Folder that a relative path starts from.
    """
    target = base / path
    if target.is_file() or (target / "zarr.json").is_file():
        return [target]
    if target.exists() or not _PATTERN.search(path):
        return _files_in(target)
    files: list[Path] = []
    for pattern in _expand_braces(path):
        matches_files = pattern.endswith((*_SUFFIXES, ".zarr"))
        # glob.glob, because Path.glob refuses absolute patterns.
        for match in sorted(glob.glob(pattern.rstrip("/"), root_dir=base, recursive=True)):  # noqa: PTH207
            files += [base / match] if matches_files else _files_in(base / match)
    return list(dict.fromkeys(files))


def absolute_path(path: str, base: Path) -> str:
    """Path or pattern of a dataset, made absolute.

    Raises
    ------
    ConfigError
        If a pattern would change its meaning because `base` itself has pattern characters.
    """
    if _PATTERN.search(path) and _PATTERN.search(str(base)):
        raise ConfigError(
            f"[datasets] path: got the pattern {path!r} in the folder {str(base)!r}, expected a folder without "
            "pattern characters. Save into that folder, or give an absolute path."
        )
    return str(base / path)


def _files_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [file for suffix in _SUFFIXES for file in sorted(folder.iterdir()) if file.suffix == suffix]


def _expand_braces(pattern: str) -> list[str]:
    braces = re.search(r"\{([^{}]+)\}", pattern)
    if braces is None:
        return [pattern]
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [expanded for option in braces[1].split(",") for expanded in _expand_braces(before + option.strip() + after)]
