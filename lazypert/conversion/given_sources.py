"""The sources of a conversion as they are given: files and objects, which must not change meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lazypert._internal.paths import local_path
from lazypert._internal.tasks import uses_processes
from lazypert.conversion.isolated_reader import open_isolated
from lazypert.conversion.plan import source_stamp
from lazypert.converter import is_in_memory, is_object, open_source
from lazypert.errors import ConfigError, SourceFormatError

if TYPE_CHECKING:
    from anndata import AnnData

    from lazypert.converter import ScreenReader

Source: TypeAlias = "str | os.PathLike[str] | AnnData"
"""A file or an object to convert."""

_COPY = "Conversion reads local files: copy it to this machine first. Nothing was written."


@dataclass(frozen=True)
class GivenSources:
    """Sources, and the files that they are read from.

    Attributes
    ----------
    given
        Absolute paths, and objects.
    files
        The files among them, and those of backed AnnData objects.
    stamps
        Size and time of change of each file, before the first byte is read.
    """

    given: list[Any]
    files: list[Path]
    stamps: list[tuple[int, int]]

    @classmethod
    def of(cls, source: Any) -> GivenSources:
        """Take one source, or several.

        Raises
        ------
        ConfigError
            If there is none, it is neither a path nor an object that can be converted, or a path is a URL.
        """
        is_one = isinstance(source, str | os.PathLike) or is_object(source)
        if not is_one and not isinstance(source, Iterable):
            raise ConfigError(
                f"source: got {type(source).__name__}, expected a path or an AnnData, or a list of them. Nothing was "
                "written."
            )
        given = [
            one if is_object(one) else local_path("source", one, _COPY).absolute()
            for one in ([source] if is_one else source)
        ]
        if not given:
            raise ConfigError("source: got an empty list, expected at least one file.")
        files = [file for one in given if (file := _file_of(one)) is not None]
        return cls(given, files, [source_stamp(file) for file in files])

    def open(self, *, isolate: bool = False) -> list[ScreenReader]:
        """Open all sources; with `isolate`, files are read in a process of their own.

        Raises
        ------
        SourceMissingError, SourceFormatError
            If a file does not exist, or cannot be converted.
        ConfigError
            If an object would have to be sent to other processes.
        """
        readers = open_isolated(self.given) if isolate else [open_source(one) for one in self.given]
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


def _file_of(source: Any) -> Path | None:
    """Path of a source file, or of the file of a backed AnnData; None for other objects."""
    path = source if isinstance(source, os.PathLike) else getattr(source, "filename", None)
    return None if path is None else Path(path).absolute()
