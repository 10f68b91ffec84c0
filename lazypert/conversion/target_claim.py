"""A claim on a URL: one process writes a store there at a time, and others see that it is unfinished.

Object storage has no locks. The claim is an object beside the store's own, which its owner renews; a claim that has
not been renewed for a while is that of a process that was killed.
"""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from lazypert.conversion.checkpoints import load_checkpoint, save_checkpoint
from lazypert.errors import LazypertError, MachineError, StoreExistsError
from lazypert.store.unfinished import CLAIM

if TYPE_CHECKING:
    from pathlib import Path

    from lazypert.store.object_folder import ObjectFolder

RENEWAL, EXPIRY = 20.0, 120.0
"""Seconds between renewals of a claim, and after which it has expired."""

ROOT = "zarr.json"


class TargetClaim:
    """The right to write a store to a URL, until `release`.

    Parameters
    ----------
    objects
        The URL of the store.
    record
        Local file that remembers the claim, so that an interrupted conversion gets it back at once.
    fingerprint
        Identifies what is written; None for what cannot be resumed.

    Attributes
    ----------
    parts
        Where objects go before the store is complete: the URL itself or, if there is a store that they will
        replace, a URL beside it.
    is_replacing
        Whether there is such a store.
    is_lost
        Whether another process was seen to have taken over the URL.

    Raises
    ------
    StoreExistsError
        If another process is writing there, or there are objects that are not a store.
    """

    def __init__(self, objects: ObjectFolder, record: Path, fingerprint: str | None) -> None:
        self.objects, self._record = objects, record
        self._stop, self.is_lost = threading.Event(), False
        known = load_checkpoint(record) or {}
        found = _read(objects)
        is_ours = bool(found) and found.get("claim") == known.get("claim")
        if found and not is_ours:
            _require_expired(objects, found)
        if is_ours and fingerprint is not None and known.get("fingerprint") == fingerprint:
            self._content = known
        else:
            self._take_over(found, fingerprint)
        self.is_replacing = bool(self._content["is_replacing"])
        self.parts = _parts(objects, self._content)
        self._renewal = threading.Thread(target=self._renew, name="lazypert-claim", daemon=True)
        self._renewal.start()

    @property
    def name(self) -> str:
        """What tells the claim from others."""
        return str(self._content["claim"])

    def _take_over(self, found: dict[str, Any], fingerprint: str | None) -> None:
        """Claim the URL, and delete what an unfinished conversion has left there."""
        has_store = self.objects.head(ROOT) is not None
        if found:
            _discard(self.objects, found, keep_store=has_store)
        elif not has_store and self.objects.list():
            raise not_a_store(str(self.objects))
        claim = uuid.uuid4().hex[:12]
        self._content = {"claim": claim, "fingerprint": fingerprint, "is_replacing": has_store}
        try:
            self.objects.put(CLAIM, self._encoded(), only_new=True)
        except FileExistsError:
            raise _busy(self.objects, "has just begun") from None
        if _read(self.objects).get("claim") != claim:  # storage without conditional requests
            raise _busy(self.objects, "has just begun")
        save_checkpoint(self._record, self._content)

    def _encoded(self) -> bytes:
        return json.dumps({**self._content, "renewed": datetime.now(UTC).isoformat()}).encode()

    def _renew(self) -> None:
        while not self._stop.wait(RENEWAL):
            with contextlib.suppress(LazypertError):  # the next renewal may succeed
                self.is_lost = _read(self.objects).get("claim") != self._content["claim"]
                if self.is_lost:
                    return
                self.objects.put(CLAIM, self._encoded())

    def check(self) -> None:
        """Raise `MachineError` if another process has taken over the URL, such as after a long sleep of this one."""
        self.is_lost |= _read(self.objects).get("claim") != self.name
        if self.is_lost:
            raise MachineError(
                f"store: another process has begun to write {str(self.objects)!r}, because this one had not renewed "
                "its claim. Nothing of what this one wrote is there. Wait for the other one, or choose another URL."
            )

    def release(self, *, keep: bool, is_complete: bool) -> None:
        """Give up the claim.

        Parameters
        ----------
        keep
            Whether to leave it and the objects for the next run of the same conversion.
        is_complete
            Whether the store is complete; otherwise its objects are deleted.
        """
        self._stop.set()
        self._renewal.join(timeout=RENEWAL)
        if keep:
            return
        with contextlib.suppress(LazypertError):  # what stays is recognised by its claim
            if not self.is_lost:
                keep_store = is_complete or self.objects.head(ROOT) is not None
                _discard(self.objects, self._content, keep_store=keep_store)
            self._record.unlink(missing_ok=True)  # otherwise this machine gets its claim back at once


def not_a_store(where: str) -> StoreExistsError:
    """Make the error for a URL below which there are other objects than those of a store."""
    return StoreExistsError(
        f"store: there are objects at {where!r} that are not a Zarr store. overwrite=True replaces only stores, so "
        "that a mistyped URL deletes nothing else. Choose another URL. Nothing was written."
    )


def _parts(objects: ObjectFolder, content: dict[str, Any]) -> ObjectFolder:
    return objects.sibling(f".partial-{content['claim']}") if content["is_replacing"] else objects


def _discard(objects: ObjectFolder, content: dict[str, Any], *, keep_store: bool) -> None:
    """Delete the objects of an unfinished conversion, and its claim last."""
    parts = _parts(objects, content)
    if parts is not objects:
        parts.delete(parts.list())
    if not keep_store:
        objects.delete(objects.list().keys() - {CLAIM})
    objects.delete([CLAIM])


def _read(objects: ObjectFolder) -> dict[str, Any]:
    try:
        content = json.loads(objects.get(CLAIM))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) and {"claim", "is_replacing"} <= content.keys() else {}


def _require_expired(objects: ObjectFolder, content: dict[str, Any]) -> None:
    info = objects.head(CLAIM)
    modified = datetime.fromisoformat(content["renewed"]) if info is None or info.modified is None else info.modified
    age = (datetime.now(UTC) - modified).total_seconds()
    if age < EXPIRY:
        raise _busy(objects, f"was at work {max(0, age):.0f} s ago")


def _busy(objects: ObjectFolder, seen: str) -> StoreExistsError:
    return StoreExistsError(
        f"store: another process is writing {str(objects)!r} (it {seen}). Wait for it to finish; if it was killed, its "
        f"claim expires {EXPIRY:.0f} s after its last sign of life. Nothing was written."
    )
