"""Staging of a conversion to object storage: objects are sent as they are finished, and the root metadata last.

<work_dir>/<name>-<id>.partial.lock           the lock of this machine
<work_dir>/<name>-<id>.partial-<fingerprint>  spills, checkpoints and metadata, as for a local target
<work_dir>/<name>-<id>.claim.json             remembers the claim

<url>/conversion.partial.json                 the claim, see `target_claim`
<url>.partial-<claim>/                        objects that will replace those of an existing store
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazypert._internal.paths import local_path, shown_url
from lazypert.conversion.staging import StagingDirectory
from lazypert.conversion.store_files import UPLOADS, ObjectFiles
from lazypert.conversion.target_claim import ROOT, TargetClaim, not_a_store
from lazypert.errors import ConfigError, MachineError, StoreExistsError
from lazypert.store.object_folder import ObjectFolder, require_object_url
from lazypert.store.unfinished import CLAIM

if TYPE_CHECKING:
    from collections.abc import Mapping


class RemoteStaging(StagingDirectory):
    """The local directory and the URL in which one process builds a store.

    Parameters
    ----------
    objects
        URL of the store.
    fingerprint
        See `StagingDirectory`.
    work_dir
        Folder for spills and checkpoints.
    """

    def __init__(self, objects: ObjectFolder, fingerprint: str | None, work_dir: Path) -> None:
        self.objects = objects
        place = scratch_path(objects.url, work_dir)
        super().__init__(place, fingerprint)
        try:
            self._claim = TargetClaim(objects, place.with_name(f"{place.name}.claim.json"), fingerprint)
        except BaseException:
            super().release(keep=self.is_resumed)
            raise
        self.files = ObjectFiles(self._claim.parts)
        self._is_complete, self._sent = False, dict[str, int]()

    @property
    def location(self) -> str:
        """URL of the store."""
        return str(self.objects)

    @staticmethod
    def check(objects: ObjectFolder, *, overwrite: bool) -> None:
        """Raise `StoreExistsError` if the URL may not be written to, and `ConfigError` if it cannot."""
        keys = objects.list().keys()
        if ROOT in keys and not overwrite:
            raise _exists(objects)
        if keys and not keys & {ROOT, CLAIM}:
            raise not_a_store(str(objects))

    def publish(self, *, overwrite: bool) -> None:  # noqa: ARG002 - a store that appeared meanwhile is never replaced
        """Send the rest, compare what is there, and put the root metadata in place.

        Raises
        ------
        StoreExistsError
            If a store has appeared at the URL in the meantime.
        MachineError
            If an object is not there as it was sent, or another process writes to the URL.
        """
        root = (self.store / ROOT).read_bytes()
        self._sent.update({e.key: e.size for e in self.files.take(self.store, is_taken=lambda key: key != ROOT)})
        parts = self._claim.parts
        self._check_objects(parts)
        self._claim.check()
        if self._claim.is_replacing:
            # Without its root metadata nothing is a store: nobody can open a mixture.
            self.objects.delete([ROOT])
            self.objects.delete(self.objects.list().keys() - {CLAIM})
            with ThreadPoolExecutor(UPLOADS) as pool:
                list(pool.map(lambda key: parts.copy(key, self.objects), self._sent))
            self._check_objects(self.objects)
        try:
            self.objects.put(ROOT, root, only_new=True)
        except FileExistsError:
            if self.objects.get(ROOT) != root:  # else an answer was lost, and the request repeated
                raise _exists(self.objects) from None
        self._is_complete = True

    def expect(self, sizes: dict[str, int]) -> None:
        """Say which objects a store consists of, apart from what is still in the local folder."""
        self._sent = dict(sizes)

    def _check_objects(self, where: ObjectFolder) -> None:
        """Compare the objects with what was sent, and delete those that an earlier attempt has left."""
        found = where.list()
        wrong = [key for key, size in self._sent.items() if key not in found or found[key].size != size]
        if wrong:
            raise MachineError(
                f"{wrong[0]} and {len(wrong) - 1:,} other objects are not in {str(where)!r} as they were sent. "
                "Something else deletes or writes objects there. Run the same conversion again to resume. No store "
                "was made."
            )
        where.delete(found.keys() - self._sent.keys() - {CLAIM})

    def release(self, *, keep: bool, after_error: bool = False) -> None:
        """Give up the URL and the directory."""
        self._claim.release(keep=keep, is_complete=self._is_complete)
        super().release(keep=keep, after_error=after_error)


def remote_target(url: str, storage_options: Mapping[str, Any] | None) -> ObjectFolder:
    """Return the place of a store in object storage.

    Raises
    ------
    ConfigError
        If stores cannot be written to such URLs.
    """
    if url.partition("://")[0].lower() in ("http", "https"):
        raise ConfigError(
            f"store: got {shown_url(url)!r}, but stores cannot be written over HTTP. Pass the URL of a bucket, such as "
            "'s3://bucket/screen.zarr', or a local folder. Nothing was written."
        )
    require_object_url("store", url)
    return ObjectFolder(url, storage_options)


def _exists(objects: ObjectFolder) -> StoreExistsError:
    return StoreExistsError(
        f"store: {str(objects)!r} exists already. Pass overwrite=True to replace it once the new store is complete, "
        "or choose another URL. Nothing was written."
    )


def scratch_path(url: str, work_dir: Path) -> Path:
    """Path in a work folder that belongs to a URL."""
    name = url.rpartition("/")[2][:100]
    return work_dir / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"


def work_folder(target: Path | Any, work_dir: str | Path | None) -> Path:
    """Folder of temporary files: beside a local store, or a local folder of its own.

    Parameters
    ----------
    target
        Where the store is: a local path, or something else for a URL.

    Raises
    ------
    ConfigError
        If a folder is given for a local store.
    """
    if isinstance(target, Path):
        if work_dir is not None:
            raise ConfigError(
                f"work_dir: got {str(work_dir)!r} for the local store {str(target)!r}, which has its temporary files "
                "beside it. Leave it out. Nothing was written."
            )
        return target.parent
    if work_dir is None:
        return default_work_dir()
    return local_path("work_dir", work_dir, "Temporary files are local.").absolute()


def default_work_dir() -> Path:
    """Folder of this user below that of temporary files.

    Raises
    ------
    ConfigError
        If it belongs to another user, who could then change what is written.
    """
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    folder = Path(tempfile.gettempdir()) / f"lazypert-{user}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "getuid") and (folder.stat().st_uid != os.getuid() or folder.is_symlink()):
        raise ConfigError(f"work_dir: {str(folder)!r} belongs to another user. Pass a folder of your own as work_dir.")
    return folder
