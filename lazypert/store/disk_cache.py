"""A bounded cache of object storage on the local disk, shared by processes."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections import OrderedDict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.files import crc32
from lazypert.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from lazypert.store.byte_reader import ByteRange

_BLOCK = 256 * 1024  # bytes that are read and recorded together
_N_BLOCKS = 8192  # of one object: 2 GiB
_SEAL = 4  # bytes of the checksum of a whole object
_REFRESH_SECONDS = 60  # how often a file's time of use is noted
_REQUEST_BLOCKS = 16  # blocks read by one request at most
_MAX_CHECKED = 65_536  # files whose blocks are known to be right


class DiskCache:
    """Keeps parts of the objects of one version of one store in local files. Thread-safe and picklable.

    A file starts with a table that says which blocks of the object follow it, each with its checksum; a block's bytes
    are written before its entry. Blocks that were damaged are therefore read again, and several processes can write to
    one file at a time, as they write the same bytes. The files that were not used for longest are deleted when all of
    a cache folder exceed its limit; who has them open can read on.

    Parameters
    ----------
    folder
        The cache folder, which stores share.
    limit
        Bytes that all its files may take.
    identity
        What tells this version of this store from all others.
    """

    HEADER = 8 * _N_BLOCKS

    def __init__(self, folder: str | Path, limit: int, identity: str) -> None:
        self.folder, self.limit, self.identity = Path(folder), limit, identity
        self._of_store = self.folder / sha256(identity.encode()).hexdigest()[:32]
        self._checked: OrderedDict[tuple[int, int], NDArray[np.bool_]] = OrderedDict()
        self._lock = threading.Lock()
        self._since_eviction = limit  # so that the first write looks at what is there
        try:
            self._of_store.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._of_store):
                pass
        except OSError as error:
            raise ConfigError(
                f"cache_dir: got {str(folder)!r}, a folder that cannot be written to ({error.strerror}). Choose "
                "another folder, or pass cache_dir=None."
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return DiskCache, (self.folder, self.limit, self.identity)

    def __repr__(self) -> str:
        return f"DiskCache({str(self.folder)!r}, {self.limit:,} bytes)"

    # Whole small objects.

    def load(self, key: str) -> bytes | None:
        """Return a small object, or None if it is not in the cache or damaged there."""
        path = self._path(key, "whole")
        try:
            content = path.read_bytes()
            _note_use(path)
        except OSError:
            return None
        body, seal = content[:-_SEAL], content[-_SEAL:]
        return body if crc32(body).to_bytes(_SEAL, "little") == seal else None

    def save(self, key: str, body: bytes) -> None:
        """Keep a small object."""
        path = self._path(key, "whole")
        with contextlib.suppress(OSError):  # a full disk is no reason not to go on reading
            with tempfile.NamedTemporaryFile(dir=self._of_store, delete=False) as file:
                file.write(body + crc32(body).to_bytes(_SEAL, "little"))
            Path(file.name).replace(path)
        self._count(len(body))

    # Blocks of large objects.

    def open_files(
        self,
        keys: Sequence[str],
        ranges: Sequence[ByteRange],
        fetch: Callable[[list[ByteRange]], list[bytes | None]],
    ) -> list[int]:
        """Open the files of objects, after reading the blocks of ranges that are not in them.

        Parameters
        ----------
        keys
            Objects, each once.
        ranges
            What will be read of them.
        fetch
            Reads byte ranges from the storage.
        """
        files: list[int] = []
        try:
            files.extend(map(self._open, keys))
            wanted: list[tuple[int, str, int, int]] = []
            for key, file in zip(keys, files, strict=True):
                blocks = _blocks_of([one for one in ranges if one[0] == key])
                missing = blocks[~self._are_present(file, blocks)]
                breaks = np.flatnonzero(np.diff(missing) != 1) + 1
                for run in np.split(missing, breaks) if len(missing) else []:
                    for at in range(0, len(run), _REQUEST_BLOCKS):
                        part = run[at : at + _REQUEST_BLOCKS]
                        wanted.append((file, key, int(part[0]), len(part)))
            if wanted:
                bodies = fetch([(key, first * _BLOCK, n * _BLOCK) for _, key, first, n in wanted])
                for (file, key, first, _), body in zip(wanted, bodies, strict=True):
                    if body is None:
                        raise FileNotFoundError(2, "no such object", key)
                    self._write(file, first, body)
        except BaseException:
            for file in files:
                os.close(file)
            raise
        return files

    def drop(self, key: str) -> None:
        """Delete the file of an object."""
        self._path(key, "blocks").unlink(missing_ok=True)

    def _open(self, key: str) -> int:
        path = self._path(key, "blocks")
        file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        _note_use(path)
        return file

    def _are_present(self, file: int, blocks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether blocks are in a file; the checksum of each is compared when this process first uses it."""
        table = np.frombuffer(os.pread(file, self.HEADER, 0).ljust(self.HEADER, b"\0"), "<u8")
        present = table[blocks] != 0
        known = self._known(file)
        for i in np.flatnonzero(present & ~known[blocks]).tolist():
            number, entry = int(blocks[i]), int(table[blocks[i]])
            body = os.pread(file, entry >> 32, self.HEADER + number * _BLOCK)
            present[i] = known[number] = len(body) == entry >> 32 and crc32(body) == entry & 0xFFFFFFFF
        return present

    def _known(self, file: int) -> NDArray[np.bool_]:
        stat = os.fstat(file)
        with self._lock:
            found = self._checked.setdefault((stat.st_dev, stat.st_ino), np.zeros(_N_BLOCKS, bool))
            self._checked.move_to_end((stat.st_dev, stat.st_ino))
            while len(self._checked) > _MAX_CHECKED:
                self._checked.popitem(last=False)
        return found

    def _write(self, file: int, first: int, body: bytes) -> None:
        known = self._known(file)
        _write_all(file, body, self.HEADER + first * _BLOCK)
        parts = [body[at : at + _BLOCK] for at in range(0, len(body), _BLOCK)]
        entries = np.array([len(part) << 32 | crc32(part) for part in parts], "<u8")
        _write_all(file, entries.tobytes(), 8 * first)
        known[first : first + len(parts)] = True
        self._count(len(body))

    def _path(self, key: str, kind: str) -> Path:
        return self._of_store / f"{sha256(key.encode()).hexdigest()[:32]}.{kind}"

    # The limit.

    def _count(self, n_bytes: int) -> None:
        """Note written bytes, and delete old files now and then."""
        with self._lock:
            self._since_eviction += n_bytes
            if self._since_eviction < max(1, self.limit // 16):
                return
            self._since_eviction = 0
        self._evict()

    def _evict(self) -> None:
        found = []
        for path in self.folder.glob("*/*"):
            with contextlib.suppress(OSError):  # another process deletes too
                stat = path.stat()
                found.append((stat.st_mtime, stat.st_blocks * 512, path))
        total, bound = sum(size for _, size, _ in found), self.limit - self.limit // 8
        for _, size, path in sorted(found):
            if total <= bound:
                break
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size


def _blocks_of(ranges: Sequence[ByteRange]) -> NDArray[np.int64]:
    """Return the numbers of the blocks that ranges of one object overlap, sorted and unique."""
    numbers = [
        np.arange(offset // _BLOCK, -(-(offset + length) // _BLOCK)) for _, offset, length in ranges if length > 0
    ]
    return np.unique(np.concatenate(numbers)) if numbers else np.empty(0, np.int64)


def _note_use(path: Path) -> None:
    with contextlib.suppress(OSError):
        if time.time() - path.stat().st_mtime > _REFRESH_SECONDS:
            os.utime(path)


def _write_all(file: int, body: bytes, offset: int) -> None:
    view = memoryview(body)
    while view:
        n = os.pwrite(file, view, offset)
        view, offset = view[n:], offset + n
