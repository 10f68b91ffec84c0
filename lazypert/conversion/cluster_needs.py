"""What the workers of a cluster need for a conversion: the source files, and the folder where the store is made."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from lazypert._internal.cluster import Needs, active_client, check_workers
from lazypert.conversion.plan import source_stamp
from lazypert.converter import is_in_memory
from lazypert.errors import LazypertError
from lazypert.store.remote_file import RemoteFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lazypert.converter import ScreenReader

_TOKEN = "client.token"  # noqa: S105 - names a file
_ADVICE = (
    "Workers read the files and write the store: put both on storage that every worker mounts at the same path, with "
    "the same version of lazypert everywhere; or stop that worker, or close the client to convert on this machine."
)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A source file or folder, which must be the same for every worker."""

    path: Path | RemoteFile
    stamp: tuple[int, int]

    def problem(self) -> str | None:
        """Return what is wrong with the file on this machine."""
        try:
            if isinstance(self.path, RemoteFile):
                self.path.check_unchanged()
            stamp = source_stamp(self.path) if self.path.exists() else None
        except LazypertError as error:
            return f"cannot read {str(self.path)!r} ({error})"
        except OSError as error:
            return f"cannot read {str(self.path)!r} ({error.strerror})"
        if stamp is None:
            return f"cannot see {str(self.path)!r}"
        if stamp != self.stamp:
            return f"sees another file at {str(self.path)!r}: its size or time of change differs"
        return None


@dataclass(frozen=True, slots=True)
class SharedFolder:
    """A folder of the client's, which every worker must see and be allowed to write to."""

    path: Path
    token: str

    @classmethod
    def of(cls, path: Path) -> SharedFolder:
        """Leave a token in a folder, by which workers recognise it."""
        folder = cls(path, uuid4().hex)
        (path / _TOKEN).write_text(folder.token)
        return folder

    def problem(self) -> str | None:
        """Return what is wrong with the folder on this machine."""
        written = self.path / f"worker-{uuid4().hex}"
        try:
            if (self.path / _TOKEN).read_text() != self.token:
                return f"sees another folder at {str(self.path)!r}"
            written.touch()
        except FileNotFoundError:
            return f"cannot see {str(self.path)!r}, where the client writes"
        except OSError as error:
            return f"cannot write to {str(self.path)!r} ({error.strerror})"
        with suppress(FileNotFoundError):
            written.unlink()
        return None


def check_cluster(files: Sequence[Path | RemoteFile], target: Path) -> None:
    """Check before anything is written that every worker of the active client can take part in a conversion.

    Raises
    ------
    ClusterError
        If one cannot; it is named.
    """
    if active_client() is None:
        return
    parent = next(path for path in target.parents if path.exists())
    with tempfile.TemporaryDirectory(prefix=f"{target.name}.partial-check-", dir=parent) as folder:
        advice = f"{_ADVICE} Nothing was written."
        check_workers(Needs.of(*_sources(files), SharedFolder.of(Path(folder)), advice=advice))


def needs_of_tasks(readers: Sequence[ScreenReader], work: Path) -> Needs | None:
    """Return what workers that join later must have, or None without a cluster.

    Parameters
    ----------
    work
        Folder of the tasks.
    """
    if active_client() is None:
        return None
    files = [reader.path for reader in readers if not is_in_memory(reader)]
    advice = f"{_ADVICE} What is finished is kept: the same conversion, run again, resumes."
    return Needs.of(*_sources(files), SharedFolder.of(work), advice=advice)


def _sources(files: Sequence[Path | RemoteFile]) -> list[SourceFile]:
    return [SourceFile(path if isinstance(path, RemoteFile) else path.absolute(), source_stamp(path)) for path in files]
