"""Which other files a source may refer to: those in its own folder and below. Links never lead elsewhere.

Someone else may have made the source. If its links were followed anywhere, converting it could copy private files of
whoever converts it into the store. A source at a URL may refer to no file at all: HDF5 would look for it on this
computer. The path of the source itself is the caller's, and may be a link.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import h5py

from lazypert.converter import as_remote
from lazypert.errors import SourceFormatError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

ADVICE = "Links are followed within the source's own folder only. "


def may_lead_to(source: Path, other: Path) -> bool:
    """Whether a source that is one file may refer to another file."""
    if as_remote(source) is not None:
        return False
    found = other.resolve()
    return any(found.is_relative_to(folder) for folder in (source.parent.resolve(), source.resolve().parent))


def file_number(node: h5py.HLObject) -> int:
    """Return what tells the file that holds an HDF5 object from the other files that are open."""
    number: int = h5py.h5o.get_info(node.id).fileno
    return number


def check_links(folder: Path, paths: Iterable[Path] | None = None) -> None:
    """Refuse a folder with symbolic links that lead out of it.

    Parameters
    ----------
    paths
        The files to look at; None looks at all, however deep.

    Raises
    ------
    SourceFormatError
        If there is one.
    """
    root = folder.resolve()
    links = _links_below(folder) if paths is None else (path for path in paths if path.is_symlink())
    for link in links:
        target = link.resolve()
        if not target.is_relative_to(root):
            raise SourceFormatError(
                f"{str(folder)!r} has the link {link.relative_to(folder).as_posix()!r}, which leads to "
                f"{str(target)!r}, expected files inside the folder. {ADVICE}If you trust it, replace the links by "
                "copies of the files: cp -rL FOLDER COPY. No store was made."
            )


def _links_below(folder: Path) -> Iterable[Path]:
    todo = [folder]
    while todo:
        with os.scandir(current := todo.pop()) as items:
            for item in items:
                if item.is_symlink():
                    yield current / item.name
                elif item.is_dir():
                    todo.append(current / item.name)


def check_members(archive: Path, names: Iterable[str]) -> None:
    """Refuse an archive with members whose names lead out of it.

    Raises
    ------
    SourceFormatError
        If there is one.
    """
    for name in names:
        if name.startswith("/") or ".." in name.replace("\\", "/").split("/"):
            raise SourceFormatError(
                f"{str(archive)!r} has the member {name!r}, whose name leads out of the archive; expected names inside "
                "it. Such an archive is damaged, or made to overwrite files of whoever unpacks it; get it again. "
                "No store was made."
            )
