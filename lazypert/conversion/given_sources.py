"""The sources of a conversion as they are given: files and objects, which must not change meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lazypert._internal.paths import is_url, location
from lazypert._internal.tasks import uses_processes
from lazypert.conversion.plan import source_stamp
from lazypert.converter import is_in_memory, is_object, open_source
from lazypert.errors import ConfigError, SourceFormatError
from lazypert.store.object_folder import require_object_url
from lazypert.store.remote_file import RemoteFile, forget

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

    from lazypert.converter import ScreenReader

Source: TypeAlias = "str | os.PathLike[str] | AnnData"
"""A file or an object to convert."""


@dataclass(frozen=True)
class GivenSources:
    """Sources, and the files that they are read from.

    Attributes
    ----------
    given
        Absolute paths, files at URLs, and objects.
    files
        The local and remote files among them, and those of backed AnnData objects.
    stamps
        Size and time of change of each file, before the first byte is read.
    """

    given: list[Any]
    files: list[Path | RemoteFile]
    stamps: list[tuple[int, int]]

    @classmethod
    def of(cls, source: Any, storage_options: Mapping[str, Any] | None = None) -> GivenSources:
        """Take one source, or several; `storage_options` are those of URLs.

        Raises
        ------
        ConfigError
            If there is none, it is neither a path nor an object that can be converted, or `storage_options` are
            refused.
        """
        is_one = isinstance(source, str | os.PathLike) or is_object(source)
        if not is_one and not isinstance(source, Iterable):
            raise ConfigError(
                f"source: got {type(source).__name__}, expected a path or an AnnData, or a list of them. Nothing was "
                "written."
            )
        given = [
            one if is_object(one) else _opened(location("source", one), storage_options)
            for one in ([source] if is_one else source)
        ]
        if not given:
            raise ConfigError("source: got an empty list, expected at least one file.")
        files = [file for one in given if (file := _file_of(one)) is not None]
        return cls(given, files, [source_stamp(file) for file in files])

    def open(self) -> list[ScreenReader]:
        """Open all sources.

        Raises
        ------
        SourceMissingError, SourceFormatError
            If a file does not exist, or cannot be converted.
        ConfigError
            If an object would have to be sent to other processes.
        """
        readers = [open_source(one) for one in self.given]
        if any(map(is_in_memory, readers)) and uses_processes():
            raise ConfigError(
                "source: got an AnnData object with a Dask scheduler that uses other processes, expected files, which "
                "they can open. Write it to an .h5ad file and convert that, or use threads: "
                "dask.config.set(scheduler='threads'). Nothing was written."
            )
        return readers

    def check_unchanged(self) -> None:
        """Raise `SourceFormatError` if a file has changed since it was given."""
        for file, stamp in zip(self.files, self.stamps, strict=True):
            if source_stamp(file) != stamp:
                raise SourceFormatError(
                    f"{str(file)!r} changed while it was being converted, and the store would mix its old and new "
                    "content. Convert it again when nothing is writing to it. No store was made."
                )
            if isinstance(file, RemoteFile):
                file.check_unchanged()

    def forget(self) -> None:
        """Delete what was kept of remote files on the local disk."""
        forget(self.files)


def _opened(path: str, storage_options: Mapping[str, Any] | None) -> Path | RemoteFile:
    if not is_url(path):
        return Path(path).absolute()
    require_object_url("source", path)
    return RemoteFile(path, storage_options)


def _file_of(source: Any) -> Path | RemoteFile | None:
    """Source file, or file of a backed AnnData; None for other objects."""
    if isinstance(source, RemoteFile):
        return source
    path = source if isinstance(source, os.PathLike) else getattr(source, "filename", None)
    return None if path is None else Path(path).absolute()
