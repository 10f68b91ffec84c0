"""Writing a store: create, template, write shards, finalise. No store exists before the last step."""

from __future__ import annotations

import errno
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazypert._internal.files import is_temporary
from lazypert.conversion.array_writer import ArrayWriter, read_nodes
from lazypert.conversion.remote_staging import RemoteStaging, default_work_dir
from lazypert.conversion.staging import StagingDirectory, check_folder
from lazypert.errors import ClusterError, DiskFullError, LazypertError, MachineError
from lazypert.store.format import FORMAT_VERSION
from lazypert.store.manifest import MANIFEST, Entry, manifest_digest
from lazypert.store.object_folder import ObjectFolder

if TYPE_CHECKING:
    from typing import TypeAlias

    Target: TypeAlias = Path | ObjectFolder

_LOG = logging.getLogger("lazypert")
_TRANSIENT = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
_KEPT_FILE = re.compile(r".+/(data|indices|indptr)/(c/\d+|zarr\.json)|obsm?/(?!__lazypert__/).+/c/\d+")


class StoreWriter(ArrayWriter):
    """Builds a store in a staging directory, and puts it in its place once everything is there.

    Use it as a context manager. Leaving it before `finalise` deletes what was written, unless the
    work has a fingerprint and was interrupted from outside (Ctrl-C, a full disk, a lost worker):
    then the staging directory stays, and the next writer with the same fingerprint reuses its shards.

    Parameters
    ----------
    target
        Path or URL of the finished store.
    overwrite
        Replace a store at the target, once the new one is complete.
    fingerprint
        See `lazypert.conversion.staging.StagingDirectory`.
    work_dir
        Folder for temporary files, if the target is a URL; None for the usual place of temporary files.

    Raises
    ------
    StoreExistsError
        If `target` exists and `overwrite` is False, if it is not a Zarr store, or if another
        process is writing to it; nothing has been written by then.
    """

    def __init__(
        self,
        target: str | Target,
        *,
        overwrite: bool = False,
        fingerprint: str | None = None,
        work_dir: Path | None = None,
    ) -> None:
        self.target = Path(target) if isinstance(target, str) else target
        self._overwrite = overwrite
        self.check(self.target, overwrite=overwrite)
        self._can_resume = fingerprint is not None
        self.staging = (
            RemoteStaging(self.target, fingerprint, work_dir or default_work_dir())
            if isinstance(self.target, ObjectFolder)
            else StagingDirectory(self.target, fingerprint)
        )
        if self.staging.is_resumed:
            _delete_all_but_shards(self.staging.store)
        super().__init__(self.staging.store, self.staging.files)

    def __repr__(self) -> str:
        return f"StoreWriter({str(self.target)!r})"

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        keep = self._can_resume and _is_interruption(error)
        if keep:
            _LOG.info("interrupted: the same conversion will resume from %s", self.staging.folder)
        self.staging.release(keep=keep, after_error=error is not None)

    @staticmethod
    def check(target: Target, *, overwrite: bool) -> None:
        """Raise `StoreExistsError` if the target exists and may not be replaced."""
        if isinstance(target, ObjectFolder):
            RemoteStaging.check(target, overwrite=overwrite)
        else:
            check_folder(target, overwrite=overwrite)

    def finalise(self, attrs: dict[str, Any]) -> Target:
        """Complete the store: write the manifest and root metadata, and put it in its place.

        Parameters
        ----------
        attrs
            Entries of the root attribute ``lazypert``; the format version and digests are added.

        Raises
        ------
        StoreExistsError
            If a store has appeared at the target in the meantime.
        """
        for file in filter(is_temporary, self.root.rglob("*")):  # of workers that were killed
            if file.is_file():
                file.unlink(missing_ok=True)
        self.collect()
        self.group(MANIFEST, {})
        entries = self._all_entries()
        self.write_manifest(entries)
        self.collect()
        attrs = {"format_version": FORMAT_VERSION, **attrs, "manifest_digest": manifest_digest(entries)}
        files = [file.relative_to(self.root).as_posix() for file in self.root.rglob("zarr.json")]
        self.write_root(attrs, read_nodes(self.root, files))
        self.staging.expect({entry.key: entry.size for entry in self._entries.values()})
        self.staging.publish(overwrite=self._overwrite)
        return self.target

    def _all_entries(self) -> list[Entry]:
        entries = dict(self._entries)
        for file in sorted(self.root.rglob("*")):
            key = file.relative_to(self.root).as_posix()
            if file.is_file() and key != "zarr.json" and key not in entries:
                entries[key] = self.entry(key)
        return [entries[key] for key in sorted(entries)]


def _delete_all_but_shards(root: Path) -> None:
    """Delete what an interrupted writer left, except shards of matrices and obs, as only these are slow to write."""
    for path in root.rglob("*"):
        if path.is_file() and not _KEPT_FILE.fullmatch(path.relative_to(root).as_posix()):
            path.unlink()


def _is_interruption(error: BaseException | None) -> bool:
    """Whether the cause of an error may be temporary."""
    if error is None or isinstance(error, LazypertError):
        return isinstance(error, ClusterError | DiskFullError | MachineError)
    if isinstance(error, OSError):
        return error.errno in _TRANSIENT
    lost_worker = type(error).__module__.partition(".")[0] == "distributed"
    return lost_worker or isinstance(error, KeyboardInterrupt | SystemExit | MemoryError)
