"""Writing a store: create, template, write shards, finalise. No store exists before the last step."""

from __future__ import annotations

import contextlib
import errno
import logging
import re
from pathlib import Path
from typing import Any

from lazypert._internal.files import remove_folder, swap, sync
from lazypert.conversion.array_writer import ArrayWriter, read_nodes
from lazypert.conversion.staging import StagingDirectory
from lazypert.errors import DiskFullError, LazypertError, MachineError, StoreExistsError
from lazypert.store.format import FORMAT_VERSION
from lazypert.store.manifest import MANIFEST, Entry, manifest_digest

_LOG = logging.getLogger("lazypert")
_TRANSIENT = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
_KEPT_FILE = re.compile(r".+/(data|indices|indptr)/(c/\d+|zarr\.json)|obsm?/.+/c/\d+")
_TARGET_EXISTS = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


class StoreWriter(ArrayWriter):
    """Builds a store in a staging directory and renames it to its target once everything is on disk.

    Use it as a context manager. Leaving it before `finalise` deletes what was written, unless the
    work has a fingerprint and was interrupted from outside (Ctrl-C, a full disk, a lost worker):
    then the staging directory stays, and the next writer with the same fingerprint reuses its shards.

    Parameters
    ----------
    target
        Path of the finished store.
    overwrite
        Replace a store at the target, once the new one is complete.
    fingerprint
        See `lazypert.conversion.staging.StagingDirectory`.

    Raises
    ------
    StoreExistsError
        If `target` exists and `overwrite` is False, if it is not a Zarr store, or if another
        process is writing to it; nothing has been written by then.
    """

    def __init__(self, target: str | Path, *, overwrite: bool = False, fingerprint: str | None = None) -> None:
        self.target = Path(target)
        self._overwrite = overwrite
        self.check(self.target, overwrite=overwrite)
        self._can_resume = fingerprint is not None
        self.staging = StagingDirectory(self.target, fingerprint)
        if self.staging.is_resumed:
            _delete_all_but_shards(self.staging.store)
        super().__init__(self.staging.store)

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
    def check(target: Path, *, overwrite: bool) -> None:
        """Raise `StoreExistsError` if the target exists and may not be replaced."""
        if target.exists() and not overwrite:
            raise _target_exists(target)
        if target.exists() and not _is_replaceable(target):
            raise StoreExistsError(
                f"store: {str(target)!r} exists and is not a Zarr store. overwrite=True replaces only stores, so that "
                "a mistyped path deletes nothing else. Choose another path. Nothing was written."
            )

    def finalise(self, attrs: dict[str, Any]) -> Path:
        """Complete the store: write the manifest and root metadata, sync to disk, rename.

        Parameters
        ----------
        attrs
            Entries of the root attribute ``lazypert``; the format version and digests are added.

        Raises
        ------
        StoreExistsError
            If a store has appeared at the target in the meantime.
        """
        self.group(MANIFEST, {})
        entries = self._all_entries()
        self.write_manifest(entries)
        attrs = {"format_version": FORMAT_VERSION, **attrs, "manifest_digest": manifest_digest(entries)}
        files = [file.relative_to(self.root).as_posix() for file in self.root.rglob("zarr.json")]
        self.write_root(attrs, read_nodes(self.root, files))
        _sync_tree(self.root)
        self._publish()
        return self.target

    def _all_entries(self) -> list[Entry]:
        entries = dict(self._entries)
        for file in sorted(self.root.rglob("*")):
            key = file.relative_to(self.root).as_posix()
            if file.is_file() and key != "zarr.json" and key not in entries:
                entries[key] = self.entry(key)
        return [entries[key] for key in sorted(entries)]

    def _publish(self) -> None:
        """Rename the store to its target: only one writer can win, and a replaced store is never missing."""
        if self._overwrite and self.target.exists():
            old = self.staging.path_for_replaced_store()
            self.root.rename(old)
            swap(old, self.target)
            sync(self.target.parent)
            remove_folder(old)
            if old.exists():
                _LOG.warning("the replaced store could not be deleted: %s", old)
            return
        try:
            self.root.rename(self.target)
        except OSError as error:
            if error.errno not in _TARGET_EXISTS:
                raise
            raise _target_exists(self.target) from error
        sync(self.target.parent)


def _delete_all_but_shards(root: Path) -> None:
    """Delete what an interrupted writer left, except shards of matrices and obs, as only these are slow to write."""
    for path in root.rglob("*"):
        if path.is_file() and not _KEPT_FILE.fullmatch(path.relative_to(root).as_posix()):
            path.unlink()


def _target_exists(target: Path) -> StoreExistsError:
    return StoreExistsError(
        f"store: {str(target)!r} exists already. Pass overwrite=True to replace it once the new store is complete, "
        "or choose another path. Nothing was written."
    )


def _is_replaceable(target: Path) -> bool:
    """Whether a path is a Zarr store, intact or damaged, or an empty folder."""
    return target.is_dir() and ((target / "zarr.json").exists() or not any(target.iterdir()))


def _is_interruption(error: BaseException | None) -> bool:
    """Whether the cause of an error may be temporary."""
    if error is None or isinstance(error, LazypertError):
        return isinstance(error, DiskFullError | MachineError)
    if isinstance(error, OSError):
        return error.errno in _TRANSIENT
    lost_worker = type(error).__module__.partition(".")[0] == "distributed"
    return lost_worker or isinstance(error, KeyboardInterrupt | SystemExit | MemoryError)


def _sync_tree(root: Path) -> None:
    """Sync all files and folders, because the rename implies that they are on disk."""
    for path in sorted(root.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            sync(path)
    sync(root)
