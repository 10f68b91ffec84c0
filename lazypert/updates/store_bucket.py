"""A store at a URL that is being updated: new objects are sent, and the root metadata make them count at once.

<url>/conversion.partial.json        the claim, which conversions take too
<url>/update.partial-<claim>/        copies of the objects that are replaced, and the plan of the update

An update

1. sends the objects that the old version does not have, under their final names;
2. copies those that it will replace, and says so in the root metadata: from now on, readers take the copies;
3. after a moment, replaces these objects, and then the root metadata, which is the moment of the new version;
4. after another, deletes the copies, and the objects that only the old version had.

Before step 3 is complete, the old version is there as a whole, and what is left of a killed update is undone by the
next one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from lazypert._internal.files import crc32, write_atomic
from lazypert._internal.paths import require_plain_url
from lazypert.conversion.remote_staging import remote_target, scratch_path
from lazypert.conversion.store_files import UPLOADS, ObjectFiles
from lazypert.conversion.target_claim import ROOT, TargetClaim
from lazypert.errors import LazypertError, MachineError, StoreDamagedError, StoreExistsError
from lazypert.store import updating
from lazypert.store.damage import store_damaged
from lazypert.store.format import MARKER
from lazypert.store.manifest import MANIFEST, MANIFEST_FILES, Entry
from lazypert.store.store import Store
from lazypert.store.updating import FOLDER, PLAN, UPDATING, KeptObjects, folder_of, update_record
from lazypert.updates.remote_root import end_of, etag_of_root, replace_root, sealed
from lazypert.updates.store_folder import lock_beside, remove_leftovers

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from pathlib import Path

_LOG = logging.getLogger("lazypert")


class StoreBucket:
    """A store at a URL, claimed until `release`.

    Parameters
    ----------
    url
        Its URL.
    storage_options
        Options for it.
    work_dir
        Local folder of temporary files.

    Attributes
    ----------
    path
        What is temporary is beside this local path.
    store
        The store, opened for reading.

    Raises
    ------
    ConfigError
        If stores cannot be written to such URLs.
    StoreNotFoundError
        If there is no store.
    MachineError
        If another process writes to the store, or the storage does not answer.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None, work_dir: Path) -> None:
        self.objects = remote_target(require_plain_url("store", url), storage_options)
        self.path, self._options = scratch_path(self.objects.url, work_dir), dict(storage_options or {})
        self.store = self._open()  # before anything is written
        try:
            work_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self.not_writable(error) from error
        self._lock = lock_beside(self.path, str(self), self.not_writable)
        self._claim: TargetClaim | None = None
        try:
            remove_leftovers(self.path)
            self._claim = self._take_claim()
            self.store = self._open()
            self._clean_up()
            self._entries = self._read_entries()
        except BaseException:
            self.release()
            raise

    def __str__(self) -> str:
        return str(self.objects)

    def fill(self, root: Path, left_out: set[str]) -> None:
        """Make the folder of a new version: metadata, and an empty file in the place of each other object.

        Files that are not those of the new version have the time 0.
        """
        consolidated = json.loads(_root_of(self.store))["consolidated_metadata"]["metadata"]
        for key in self._entries:
            if not any(key == path or key.startswith(f"{path}/") for path in left_out):
                path, _, name = key.rpartition("/")
                node = consolidated.get(path) if name == ROOT else None
                _place(root / key, b"" if node is None else _without_members(node))

    def is_old(self, root: Path, key: str) -> bool:
        """Whether a file of the new version stands for the object of the old one."""
        with contextlib.suppress(FileNotFoundError):
            return (root / key).stat().st_mtime_ns == 0
        return False

    def read_old(self, key: str) -> bytes:
        """Read an object of the old version.

        Raises
        ------
        StoreDamagedError
            If it has other bytes than were written.
        """
        if key == ROOT:
            return _root_of(self.store)
        entry = self._entries[key]
        data = self.store.reader.read(key, 0, entry.size + 1)
        if not _is_same(data, entry):
            raise store_damaged(key, "missing, or its bytes changed since it was written")
        return data

    def commit(self, root: Path, written: Iterable[str], replaced: Iterable[str]) -> None:
        """Put the new version in the place of the old one; see `StoreFolder.commit`."""
        objects, claim = self.objects, self._claim
        assert claim is not None
        present = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
        new = sorted(set(written) - {ROOT})
        changed = [key for key in new if key in self._entries]
        added, gone = [key for key in new if key not in self._entries], sorted(self._entries.keys() - present)
        kept_in = f"{FOLDER}{claim.name}"
        kept = objects.sibling(f"/{kept_in}")
        kept.put(PLAN, json.dumps([*added, *gone]).encode())
        self._send(root, added)
        _each(lambda key: objects.copy(key, kept), changed)
        claim.check()
        old, written_again = _root_of(self.store), list(replaced)
        metadata = json.loads(old)
        metadata["attributes"][MARKER][UPDATING] = update_record(kept_in, changed, written_again)
        etag = replace_root(objects, sealed(metadata) + end_of(old), etag_of_root(objects, old))
        time.sleep(updating.GRACE)
        self._send(root, changed)
        self._check_sizes(root, new)
        claim.check()
        # An element may get the values back that it had before: caches tell the two versions by their texts.
        end = end_of(old) + b"\n" * bool(written_again)
        replace_root(objects, (root / ROOT).read_bytes() + end, etag)
        with contextlib.suppress(LazypertError):  # the update is complete
            self._clean_up()

    def release(self) -> None:
        """Undo what is not complete as far as the storage permits, and give up the claim."""
        if self._claim is not None:
            is_clean = False
            with contextlib.suppress(LazypertError):  # otherwise the next update does it
                self._claim.check()
                self._clean_up()
                is_clean = True
            self._claim.release(keep=not is_clean and not self._claim.is_lost, is_complete=True)
        self._lock.release()

    def not_writable(self, error: OSError) -> MachineError:
        """Make the error for a folder that cannot be written to."""
        return MachineError(
            f"work_dir: the folder {str(self.path.parent)!r} of temporary files is not writable ({error.strerror}). "
            f"Pass another one as work_dir. Nothing was changed at {str(self)!r}."
        )

    def _open(self) -> Store:
        return Store(self.objects.url, self._options)

    def _read_entries(self) -> dict[str, Entry]:
        """Sizes and checksums of all objects of the store but its root metadata."""
        try:
            of_manifest = [Entry(*fields) for fields in self.store.attrs[MANIFEST_FILES]]
            return {entry.key: entry for entry in [*self.store.read_manifest(), *of_manifest]}
        except StoreDamagedError:
            raise
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise store_damaged(MANIFEST, f"the manifest cannot be read ({error})") from error

    def _take_claim(self) -> TargetClaim:
        try:
            return TargetClaim(self.objects, self.path.with_name(f"{self.path.name}.claim.json"), None)
        except StoreExistsError as error:
            raise MachineError(str(error)) from None

    def _send(self, root: Path, keys: Iterable[str]) -> None:
        files = ObjectFiles(self.objects)
        _each(lambda key: files.write(key, [(root / key).read_bytes()]), keys)

    def _check_sizes(self, root: Path, keys: Iterable[str]) -> None:
        found = self.objects.list()
        wrong = [key for key in keys if key not in found or found[key].size != (root / key).stat().st_size]
        if wrong:
            raise MachineError(
                f"{wrong[0]} and {len(wrong) - 1:,} other objects are not in {str(self)!r} as they were sent. "
                "Something else deletes or writes objects there. The store is as it was. Update it again."
            )

    def _clean_up(self) -> None:
        """Undo an update that was not completed, and delete what only it, or only the version before it, needed."""
        objects, found = self.objects, self.objects.list()
        folders = sorted({folder for key in found if (folder := folder_of(key)) is not None})
        if not folders and UPDATING not in self.store.attrs:
            return
        self.store = self._open()
        unfinished = KeptObjects.of(self.store.attrs)
        if unfinished is not None:
            self._undo(unfinished, found.keys())
        known = {ROOT, *self._read_entries()}
        time.sleep(updating.GRACE)
        for folder in folders:
            planned = set[str]()
            with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
                planned = set(json.loads(objects.get(f"{folder}/{PLAN}")))
            objects.delete(planned & found.keys() - known)
            objects.delete(key for key in found if key.startswith(f"{folder}/") and not key.endswith(f"/{PLAN}"))
            objects.delete([f"{folder}/{PLAN}"])

    def _undo(self, unfinished: KeptObjects, found: Collection[str]) -> None:
        """Put the objects of the old version back, and open it.

        Raises
        ------
        StoreDamagedError
            If a copy is missing, and its object is not that of the old version.
        """
        objects, kept, entries = self.objects, self.objects.sibling(f"/{unfinished.folder}"), self._read_entries()
        lost = sorted(key for key in unfinished.keys if unfinished.place(key) not in found)
        for key in lost:
            if key not in entries or key not in found or not _is_same(objects.get(key), entries[key]):
                raise store_damaged(key, f"an update was interrupted, and the copy in {unfinished.folder!r} is missing")
        _each(lambda key: kept.copy(key, objects), sorted(unfinished.keys - set(lost)))
        old = _root_of(self.store)
        metadata = json.loads(old)
        del metadata["attributes"][MARKER][UPDATING]
        # As another text, by which caches tell what they read in the meantime.
        objects.put(ROOT, sealed(metadata) + end_of(old) + b"\n")
        _LOG.warning("%s: put back after an interrupted update", self)
        self.store = self._open()


def _each(act: Callable[[str], Any], keys: Iterable[str]) -> None:
    with ThreadPoolExecutor(UPLOADS) as pool:
        waiting = [pool.submit(act, key) for key in keys]
        try:
            for future in waiting:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _is_same(data: bytes, entry: Entry) -> bool:
    """Whether an object has the bytes that were written."""
    return (len(data), crc32(data)) == (entry.size, entry.crc32)


def _root_of(store: Store) -> bytes:
    """Root metadata of a store as they were when it was opened."""
    return store.reader.read(ROOT, 0, store.reader.size(ROOT) or 0)


def _place(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, [content])
    os.utime(file, ns=(0, 0))


def _without_members(node: dict[str, Any]) -> bytes:
    """Metadata of a node as its own file has them."""
    return json.dumps({name: value for name, value in node.items() if name != "consolidated_metadata"}).encode()
