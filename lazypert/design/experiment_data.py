"""Finding the files of an experiment's datasets, as cell-load does."""

from __future__ import annotations

import glob
import logging
import re
from pathlib import Path

from lazypert._internal.paths import is_url
from lazypert.errors import ConfigError

_LOG = logging.getLogger("lazypert")

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


def find_dataset(name: str, path: str, base: Path) -> list[Path | str]:
    """Files of a dataset, or its URL: relative paths start from `base`, or else from the working directory.

    Logs a warning if files were found in the working directory, or in both folders.
    """
    if is_url(path):
        return [path]
    files, here = find_files(path, base), Path.cwd()
    if Path(path).is_absolute() or here == base.absolute():
        return [*files]
    others = find_files(path, here)
    if files and others and [file.resolve() for file in files] != [file.resolve() for file in others]:
        message = "dataset %r: %r was taken from %r; the working directory %r has such files too, which cell-load takes"
        _LOG.warning(message, name, path, str(base), str(here))
    elif others and not files:
        message = "dataset %r: %r is not in %r and was taken from the working directory %r"
        _LOG.warning(message, name, path, str(base), str(here))
    return [*(files or others)]


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
