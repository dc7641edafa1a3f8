"""Who drives a run: one live driver at a time, and everything that an earlier one still writes is void."""

from __future__ import annotations

import datetime
import random
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import msgspec

from holdfast.errors import FormatError, RunInUseError, StorageError, StoreExistsError
from holdfast.persistence import layout
from holdfast.persistence.catalog import Catalog, newest_epoch, read_epoch
from holdfast.persistence.heartbeat import Pulse, await_end, is_driven, this_process_id
from holdfast.records import FORMAT_VERSION, AdoptedCheckpoint, EpochRecord
from holdfast.stores.base import UNKNOWN_HOLDER, Store, StoreLock

_ATTEMPTS = 20
_READERS_S = 5.0
_READER = "a reader that looks for the driver"
_encoder = msgspec.json.Encoder()


@dataclass(frozen=True)
class Survey:
    """What a new driver found in its run.

    Attributes:
        first_attempt: The lowest number that no attempt has had.
        first_report: The lowest index that no report has had.
    """

    catalog: Catalog
    first_attempt: int
    first_report: int


class Lease:
    """The right to drive a run, held until `release` or the death of this process.

    Args:
        lock: The kernel's, where the store has such.
        replaced: What to raise once another driver is found to have taken over.
    """

    def __init__(
        self,
        store: Store,
        record: EpochRecord,
        survey: Survey,
        lock: StoreLock | None,
        replaced: Callable[[EpochRecord], RunInUseError],
    ) -> None:
        self.record = record
        self.survey = survey
        self._store = store
        self._lock = lock
        self._replaced = replaced
        self._newer: EpochRecord | None = None
        self._pulse = Pulse(store, record, self._look) if lock is None else None
        if self._pulse is not None:
            self._pulse.start()

    @property
    def epoch(self) -> int:
        """The number of this drivership."""
        return self.record.epoch

    def check(self) -> None:
        """Looks whether this is still the run's driver; where a lock says so there is nothing to look for.

        It may cease to be right after the look. What is written then is void; see `Catalog`.

        Raises:
            RunInUseError: Another driver has taken the run over; the text says who.
            StorageError: The store did not say.
        """
        if self._pulse is not None:
            self._look()
            if self._newer is not None:
                raise self._replaced(self._newer)

    def release(self) -> None:
        """Lets the next driver in; safe to repeat."""
        if self._lock is not None:
            self._lock.release()
        if self._pulse is not None:
            self._pulse.stop(releases=self._newer is None)

    def _look(self) -> None:
        if self._newer is None:
            newest = newest_epoch(self._store)
            if newest > self.epoch:
                self._newer = read_epoch(self._store, newest)


def acquire(
    store: Store,
    name: str,
    *,
    holder: str,
    survey: Callable[[], Survey],
    configuration: Mapping[str, str] | None = None,
) -> Lease:
    """Becomes the driver of a run.

    Args:
        store: Rooted at the run's directory.
        name: The run's name, for errors.
        holder: Who asks, as a person wants to read it.
        survey: Looks at the run; called once the lock is held, or the driver before has ended, and again after a lost race.

    Raises:
        RunInUseError: A live driver holds the run; the text says who and since when.
        FormatError: A newer Holdfast drove it.
    """
    lock = _lock(store, name, f"{holder}, since {utc_now()}") if store.capabilities.kernel_lock else None
    try:
        for _ in range(_ATTEMPTS):
            epoch = newest_epoch(store) if lock is None else 0
            before = _record(store, epoch)
            if before is not None:
                _refuse_newer(store, [before])
                if not await_end(store, before):
                    raise _in_use(store, name, f"{before.holder}, since {before.created}")
            # After the wait, in which the other may have committed its last checkpoints, and a third one come.
            found = survey()
            _refuse_newer(store, found.catalog.epochs.values())
            if lock is None and found.catalog.epoch != epoch:
                continue
            record = _next_record(found, holder, configuration or {})
            rival = _create(store, record)
            if rival is None:
                return Lease(store, record, found, lock, lambda newer: _taken_over(store, name, newer))
            if lock is None:
                # Nobody but a driver that started in this very moment writes an epoch record.
                raise _in_use(store, name, f"{rival.holder}, since {rival.created}")
            # With the lock held this is the record of a driver on a machine whose locks do not reach here, or a
            # listing that lagged behind: what there is now is looked at anew.
        raise RunInUseError(
            f"the run {name!r} at {store.url} could not be taken over: in {_ATTEMPTS} tries other drivers were faster; "
            "end them, or give this run another name"
        )
    except BaseException:
        if lock is not None:
            lock.release()
        raise


def current_driver(store: Store) -> str | None:
    """Who drives the run now, and since when; None if nobody does, or where the store cannot tell."""
    if not store.capabilities.kernel_lock:
        newest = newest_epoch(store)
        record = read_epoch(store, newest) if newest else None
        return f"{record.holder}, since {record.created}" if record is not None and is_driven(store, record) else None
    if not store.exists(layout.LOCK):
        return None
    try:
        held = store.lock(layout.LOCK, _READER)
    except StorageError:  # a reader may have no right to write, which locking takes
        return None
    if isinstance(held, str):
        return None if held in (_READER, UNKNOWN_HOLDER) else held
    held.release()
    return None


def utc_now() -> str:
    """The time as records carry it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")


def _lock(store: Store, name: str, description: str) -> StoreLock:
    deadline_s = time.monotonic() + _READERS_S
    while True:
        held = store.lock(layout.LOCK, description)
        if not isinstance(held, str):
            return held
        # A reader holds the lock for as long as it takes to see that it is free; many readers come often.
        if held not in (_READER, UNKNOWN_HOLDER) or time.monotonic() > deadline_s:
            raise _in_use(store, name, held)
        time.sleep(random.uniform(0.0005, 0.005))


def _in_use(store: Store, name: str, who: str) -> RunInUseError:
    return RunInUseError(
        f"the run {name!r} at {store.url} is being driven by {who}; wait for it, end it, or give this run another name"
    )


def _taken_over(store: Store, name: str, newer: EpochRecord) -> RunInUseError:
    return RunInUseError(
        f"the run {name!r} at {store.url} was taken over by {newer.holder}, since {newer.created}, because this driver had "
        "given no sign of life; what it committed before is kept, and it ends here"
    )


def _record(store: Store, epoch: int) -> EpochRecord | None:
    """Of the driver that may still live; None where there was none (0), or its record cannot be understood."""
    try:
        return read_epoch(store, epoch) if epoch else None
    except FormatError:
        return None


def _refuse_newer(store: Store, records: Iterable[EpochRecord]) -> None:
    """Reading what a newer Holdfast wrote is fine; to write on in an older format is not."""
    newest = max((record.format_version for record in records), default=FORMAT_VERSION)
    if newest > FORMAT_VERSION:
        raise FormatError(
            f"the run at {store.url} was driven by a newer Holdfast (format version {newest}; this one writes "
            f"{FORMAT_VERSION}); upgrade with: pip install -U holdfast"
        )


def _next_record(survey: Survey, holder: str, configuration: Mapping[str, str]) -> EpochRecord:
    catalog = survey.catalog
    return EpochRecord(
        # A loss of power may have taken the record of an epoch whose checkpoints are there.
        epoch=1 + max([catalog.epoch, *(checkpoint.epoch for checkpoint in catalog.checkpoints)]),
        created=utc_now(),
        holder=holder,
        nonce=secrets.token_hex(16),
        first_attempt=survey.first_attempt,
        first_report=survey.first_report,
        adopted=tuple(AdoptedCheckpoint(name=c.name, id=c.id) for c in catalog.checkpoints),
        configuration=dict(configuration),
        process=this_process_id(),
    )


def _create(store: Store, record: EpochRecord) -> EpochRecord | None:
    """Creates an epoch record; gives the rival's where another driver was faster."""
    try:
        # Dying on the next line leaves an epoch in which nothing happened: it adopted all that was valid, and the
        # kernel lock ended with the process, so the next driver goes on from the same state.
        store.create(layout.epoch_key(record.epoch), _encoder.encode(record))
    except StoreExistsError:
        # The first answer to our own write may have been lost on the way: the nonce tells.
        found = read_epoch(store, record.epoch)
        return None if found.nonce == record.nonce else found
    return None
