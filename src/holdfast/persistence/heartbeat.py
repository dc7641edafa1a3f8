"""Signs of life of a run's driver, for stores without a lock that ends with its process.

The driver renews one small record. Another driver that comes takes the run over when the record says that the first one has
ended, when that one's process is known to be dead, or when the record has not changed for `STALE_S`. Two clocks are never
compared: the record's age is the store's own, between it and a record that the newcomer writes; then the newcomer watches it.

This is courtesy, so that nobody takes over a run by mistake. What keeps a run whole when it happens nevertheless (a driver that
was stopped for a minute and goes on) are the epochs: whatever the old driver still writes is void. It finds out by itself,
here or before its next commit or deletion, and ends with an error.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from holdfast.errors import StorageError, StoreNotFoundError
from holdfast.persistence import layout
from holdfast.persistence.machine import boot_id
from holdfast.records import EpochRecord, Heartbeat
from holdfast.stores.base import Store

_log = logging.getLogger("holdfast")
RENEW_S = 5.0
STALE_S = 30.0
_LOOK_S = 1.0
_STOP_S = 10.0
_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(Heartbeat)
# The nonces of epochs that this process has ended. Where their records could not be told so, the process still knows.
_ended: set[str] = set()


class Pulse:
    """Renews the record until it is stopped; a thread of its own, begun by `start`.

    Args:
        store: Rooted at the run's directory.
        record: The epoch that this process drives.
        look: Called at each renewal: whether a newer epoch has begun is looked for then.
    """

    def __init__(self, store: Store, record: EpochRecord, look: Callable[[], None]) -> None:
        self._store = store
        self._record = record
        self._look = look
        self._process = this_process_id()
        self._count = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Writes the first record, and goes on in the background.

        Raises:
            StorageError: The first one could not be written.
        """
        try:
            self._beat(released=False)
        except BaseException:
            _ended.add(self._record.nonce)
            raise
        self._thread = threading.Thread(target=self._run, name="holdfast-heartbeat", daemon=True)
        self._thread.start()

    def stop(self, *, releases: bool) -> None:
        """Ends the renewal; safe to repeat.

        Args:
            releases: The run is free for the next driver at once. Not to be said by one that was replaced.
        """
        if self._ended.is_set():
            return
        self._ended.set()
        if self._thread is not None:
            self._thread.join(_STOP_S)
        _ended.add(self._record.nonce)
        if not releases:
            return
        try:
            # Dying before this line lets the next driver wait until the record is stale.
            self._beat(released=True)
        except StorageError as error:
            _log.warning("%s could not be told that its driver has ended (%s)", self._store.url, error)

    def _run(self) -> None:
        while not self._ended.wait(RENEW_S):
            try:
                self._look()
                self._beat(released=False)
            except StorageError as error:
                # Others may take the run over meanwhile; if they do, the next look finds it.
                _log.debug("no sign of life could be left in %s: %s", self._store.url, error)

    def _beat(self, *, released: bool) -> None:
        self._count += 1
        beat = Heartbeat(
            epoch=self._record.epoch,
            nonce=self._record.nonce,
            count=self._count,
            released=released,
            process=self._process,
        )
        self._store.write(layout.HEARTBEAT, _encode(beat))


def await_end(store: Store, record: EpochRecord) -> bool:
    """Waits until the driver of an epoch is known, or must be taken, to have ended; at most about `STALE_S`.

    Returns:
        False as soon as it shows that it lives.

    Raises:
        StorageError: The store failed.
    """
    first = _read(store, record)
    if first is not None and first.released:
        return True
    is_alive = _is_alive(first.process if first is not None else record.process, record)
    if is_alive is not None:
        return not is_alive
    until_s = time.monotonic() + STALE_S - _age_s(store, record, first)
    if until_s > time.monotonic():
        _log.warning(
            "waiting up to %.0f s to see whether the driver of %s still lives: %s",
            until_s - time.monotonic(),
            store.url,
            record.holder or "unknown",
        )
    while (left_s := until_s - time.monotonic()) > 0:
        time.sleep(min(_LOOK_S, left_s))
        now = _read(store, record)
        if now is not None and now != first:
            return now.released
    return True


def is_driven(store: Store, record: EpochRecord) -> bool:
    """Whether the driver of an epoch gives signs of life, as far as one look tells."""
    found = _read(store, record)
    if found is None or found.released:
        return False
    is_alive = _is_alive(found.process, record)
    return is_alive if is_alive is not None else _listed_age_s(store) < STALE_S


def this_process_id() -> str:
    """What tells this process from every other, on this machine and on others; empty where that cannot be told."""
    return _process_id(os.getpid()) or ""


def _process_id(pid: int) -> str | None:
    if sys.platform != "linux":
        return None
    machine = boot_id()
    if machine is None:
        return None
    try:
        # Containers of one machine count their processes for themselves.
        names = os.readlink("/proc/self/ns/pid")
        # The second field may hold spaces and brackets; the twentieth after it is the time of the start.
        started = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    # A zombie has ended, whoever has not asked for its status yet.
    return None if started[0] == "Z" else f"{machine} {names} {pid} {started[19]}"


def _is_alive(process: str, record: EpochRecord) -> bool | None:
    """Whether a process lives and drives an epoch; None if it is not of this machine, or does not say."""
    if record.nonce in _ended:
        return False
    mine = this_process_id().split()
    theirs = process.split()
    if len(theirs) != 4 or len(mine) != 4 or theirs[:2] != mine[:2] or not theirs[2].isdecimal():
        return None
    return _process_id(int(theirs[2])) == process


def _read(store: Store, record: EpochRecord) -> Heartbeat | None:
    """The newest sign of life of an epoch; None where there is none, or none that can be read."""
    try:
        found = _decoder.decode(store.read(layout.HEARTBEAT))
    except (StoreNotFoundError, msgspec.DecodeError):
        return None
    return found if (found.epoch, found.nonce) == (record.epoch, record.nonce) else None


def _age_s(store: Store, record: EpochRecord, found: Heartbeat | None) -> float:
    """How old the last sign of life is by the store's own clock, seconds; 0 where it cannot be told."""
    key = layout.epoch_key(record.epoch) if found is None else layout.HEARTBEAT
    # Dying before it is deleted leaves an empty record that the next one replaces.
    store.write(layout.CLOCK, b"")
    try:
        times = {entry.key: entry.mtime_s for folder in (layout.PRIVATE, layout.EPOCHS) for entry in store.list(folder)}
    finally:
        store.delete(layout.CLOCK)
    if not times.get(key) or not times.get(layout.CLOCK):
        return 0.0
    return max(0.0, times[layout.CLOCK] - times[key])


def _listed_age_s(store: Store) -> float:
    """As `_age_s` of a heartbeat, by this machine's clock: a reader writes nothing."""
    written_s = next((entry.mtime_s for entry in store.list(layout.PRIVATE) if entry.key == layout.HEARTBEAT), 0.0)
    return time.time() - written_s if written_s else 0.0
