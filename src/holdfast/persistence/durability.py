"""Behind the commits: flushes to disk what is kept, says so in its note, and only then deletes what is not."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from holdfast.errors import RunInUseError, StorageError, StoreNotFoundError, WaitTimeoutError
from holdfast.persistence import layout
from holdfast.persistence.commit import files_of
from holdfast.persistence.deletion import delete_checkpoint
from holdfast.persistence.manifest import read_manifest
from holdfast.persistence.notes import NoteKeeper
from holdfast.records import CommittedCheckpoint
from holdfast.stores.base import Store

_log = logging.getLogger("holdfast")
_RETRY_S = 5.0
# A round begins at most so often: of checkpoints that come faster, those that retention lets go of meanwhile cost neither
# a flush nor a note, and the cores are the training's.
_PACE_S = 0.05
_WARN_S = 30.0
_CLOSE_LIMIT_S = 600.0
_LOOK_S = 0.2
_NAME_WAIT_S = 120.0
_NAME_WARN_S = 10.0
# Each fsync waits for the file system's journal; several at once share one commit of it.
_THREADS = 8

# What was let go of and stays after all, and the checkpoint that proved to be gone (None: only not flushed).
OnKept = Callable[[Sequence[CommittedCheckpoint], CommittedCheckpoint | None], None]


@dataclass(frozen=True)
class _Unflushed:
    """Attributes: files: Keys to flush, or None to read them when their turn comes. marks: Whether to note it."""

    checkpoint: CommittedCheckpoint
    files: Sequence[str] | None
    marks: bool


class Durability:
    """One thread that follows the commits of a run at the disk's own pace.

    It works in rounds: everything that was committed and is still kept is flushed, oldest first, and noted as
    durable; then everything that retention had let go of when the round began is deleted. So nothing is deleted
    before all that outlives it is on disk, and however fast checkpoints are committed, those that are let go of
    before their turn cost no flush.
    """

    def __init__(
        self,
        store: Store,
        notes: NoteKeeper,
        *,
        records: Sequence[str] = (),
        on_durable: Callable[[CommittedCheckpoint], None],
        on_kept: OnKept,
        before_deletion: Callable[[], None] = lambda: None,
        check_lease: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts nothing yet; the thread comes with the first work.

        Args:
            records: Keys of records that are flushed before any checkpoint.
            on_durable: Told of each checkpoint that is on disk.
            on_kept: Told of what is not deleted after all, because what was to outlive it could not be flushed.
            before_deletion: Called before each; nothing is deleted where it raises `StorageError`, or `RunInUseError`
                because another driver has the run now.
            check_lease: The latter alone, before marks are removed.
        """
        self._store = store
        self._notes = notes
        self._records: Sequence[str] = records if not store.capabilities.durable_writes else ()
        self._on_durable = on_durable
        self._before_deletion = before_deletion
        self._check_lease = check_lease
        self._in_hurry = False
        self._on_kept = on_kept
        self._flushes = not store.capabilities.durable_writes
        self._changed = threading.Condition()
        self._unflushed: dict[str, _Unflushed] = {}
        self._doomed: dict[str, CommittedCheckpoint] = {}
        self._stale_marks: list[str] = []
        self._deleting: str | None = None
        self._closing = False
        self._retry_at_s = 0.0
        self._next_round_s = 0.0
        self._awaited = 0
        self._waits_for_work = False
        self._thread: threading.Thread | None = None

    def committed(
        self,
        checkpoint: CommittedCheckpoint,
        files: Sequence[str] | None,
        doomed: Sequence[CommittedCheckpoint],
        mark: str | None = None,
    ) -> None:
        """Takes note of a commit; returns at once.

        Args:
            files: Keys to flush; none where that is done already; None to read them when they are needed.
            doomed: What retention lets go of because of it.
            mark: The key of what said that it was on its way, which is to be deleted.
        """
        with self._changed:
            if self._flushes:
                self._unflushed[checkpoint.name] = _Unflushed(checkpoint, files, marks=True)
            if mark is not None:
                self._stale_marks.append(mark)
            self.let_go(doomed)

    def let_go(self, doomed: Sequence[CommittedCheckpoint]) -> None:
        """Takes note of what retention lets go of without a commit; returns at once."""
        with self._changed:
            for old in doomed:
                self._doomed[old.name] = old
                self._unflushed.pop(old.name, None)
            self._wake()

    def begin(self, checkpoints: Sequence[CommittedCheckpoint]) -> None:
        """Flushes the run's records, and what an earlier driver committed and did not live to flush.

        The latter without a note: if power was lost meanwhile, what the disk holds may not be what was committed, and only
        digests can tell.
        """
        if not self._flushes:
            return
        with self._changed:
            for checkpoint in checkpoints:
                self._unflushed[checkpoint.name] = _Unflushed(checkpoint, None, marks=False)
            self._wake()

    def take_back(self) -> list[CommittedCheckpoint]:
        """What retention let go of and nobody has begun to delete: it stays after all."""
        with self._changed:
            back = [old for name, old in self._doomed.items() if name != self._deleting]
            for old in back:
                del self._doomed[old.name]
            return back

    def holds(self, name: str) -> bool:
        """Whether the checkpoint of that name waits to be deleted, or is being deleted."""
        return name in self._doomed

    def await_deleted(self, name: str, timeout_s: float) -> bool:
        """Waits until nothing of that name is left to delete; False after `timeout_s`."""
        with self._changed:
            self._awaited += 1
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: name not in self._doomed, timeout_s)
            finally:
                self._awaited -= 1

    def await_free(self, name: str) -> None:
        """Waits, where retention has let go of a checkpoint of that name, until it is deleted.

        Raises:
            WaitTimeoutError: That has not come to pass in time.
        """
        began_s = time.monotonic()
        while self.holds(name):
            left_s = _NAME_WAIT_S - (time.monotonic() - began_s)
            if left_s <= 0:
                raise WaitTimeoutError(
                    f"the name {name!r} is not free yet: the older checkpoint of that name, which retention let go of, "
                    f"was not deleted from {self._store.url} in {_NAME_WAIT_S:.0f} s; pass another checkpoint_dir_name"
                )
            if not self.await_deleted(name, min(left_s, _NAME_WARN_S)):
                _log.warning(
                    "waiting for the older checkpoint %r to be deleted since %.0f s", name, time.monotonic() - began_s
                )

    def hurry(self) -> None:
        """`close` waits no longer: what is not flushed has no note that says so, and is read when it is needed."""
        self._in_hurry = True

    def close(self) -> None:
        """Finishes what is open, tries once more what failed, and ends the thread; safe to repeat."""
        with self._changed:
            self._closing = True
            thread = self._thread
            self._changed.notify_all()
        if thread is None:
            return
        began_s = time.monotonic()
        warned_s = began_s
        while thread.is_alive() and not self._in_hurry and time.monotonic() - began_s < _CLOSE_LIMIT_S:
            thread.join(_LOOK_S)
            if not thread.is_alive() or time.monotonic() - warned_s < _WARN_S:
                continue
            warned_s = time.monotonic()
            _log.warning(
                "waiting for %s since %.0f s: %d checkpoints to flush to disk, %d to delete",
                self._store.url, time.monotonic() - began_s, len(self._unflushed), len(self._doomed),
            )  # fmt: skip
        if thread.is_alive() and not self._in_hurry:
            _log.error(
                "gave up waiting for %s; its newest checkpoints may not survive a loss of power", self._store.url
            )

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="holdfast-durability", daemon=True)
            self._thread.start()
        if self._waits_for_work:  # else it looks by itself when its pause is over
            self._changed.notify_all()

    def _run(self) -> None:
        last_tries = 2
        while last_tries:
            with self._changed:
                if not self._await_work():
                    return
                last = self._closing
                flushing, doomed = list(self._unflushed.values()), list(self._doomed.values())
                stale_marks, self._stale_marks = self._stale_marks, []
            self._remove_marks(stale_marks)
            flushed = self._flush_all(flushing)
            clean = self._delete_all(doomed) if flushed else True
            with self._changed:
                now_s = time.monotonic()
                self._retry_at_s = 0.0 if clean else now_s + _RETRY_S
                self._next_round_s = now_s + _PACE_S
                if last and not clean:
                    last_tries -= 1

    def _await_work(self) -> bool:
        """Waits, with the condition held; False when there will be no more."""
        while not self._closing:
            # No pace where a report waits for a name to become free.
            paced_s = 0.0 if self._awaited else self._next_round_s
            if self._unflushed or self._records or self._stale_marks:
                due_s = paced_s
            elif self._doomed:
                due_s = max(paced_s, self._retry_at_s)
            else:
                self._waits_for_work = True
                self._changed.wait()
                self._waits_for_work = False
                continue
            pause_s = due_s - time.monotonic()
            if pause_s <= 0:
                return True
            self._changed.wait(pause_s)
        return bool(self._unflushed or self._records or self._doomed or self._stale_marks)

    def _remove_marks(self, marks: Sequence[str]) -> None:
        """Before anything is deleted, which sets the mark anew."""
        try:
            if marks:
                # A newer driver may have set one of them anew, for a deletion.
                self._check_lease()
                # Dying on the next line leaves marks of checkpoints that have a manifest: they mean nothing, and the next start removes them.
                self._store.delete_many(marks)
        except (StorageError, RunInUseError) as error:
            _log.debug("marks of checkpoints of %s stay until the next start: %s", self._store.url, error)

    def _flush_records(self) -> None:
        records, self._records = self._records, ()
        try:
            if records:
                self._store.sync("", records)
        except StorageError as error:
            # A lost epoch record is survived: a checkpoint of an epoch above the newest record counts as valid.
            _log.warning("the records of the run at %s could not be flushed to disk: %s", self._store.url, error)

    def _flush_all(self, items: Sequence[_Unflushed]) -> bool:
        self._flush_records()
        flushed: list[bool] = []
        for number, item in enumerate(items):
            # While training goes on, one at a time: the cores and the journal are the foreground's.
            if self._closing and len(items) - number >= _THREADS:
                with ThreadPoolExecutor(_THREADS, thread_name_prefix="holdfast-flush") as pool:
                    flushed.extend(pool.map(self._flush_one, items[number:]))
                break
            flushed.append(self._flush_one(item))
        return all(flushed)

    def _flush_one(self, item: _Unflushed) -> bool:
        # Also where it was let go of since the round began: what is deleted at the round's end relies on it, and on no
        # later one that has not had its turn.
        checkpoint = item.checkpoint
        try:
            self._flush(item)
        except Exception as error:  # noqa: BLE001 - whatever it is, this thread has more to do
            gone = isinstance(error, StoreNotFoundError) and not self._store.exists(checkpoint.name)
            self._not_flushed(item, error, gone=gone)
            return False
        with self._changed:
            self._forget(item)
        return True

    def _forget(self, item: _Unflushed) -> None:
        if self._unflushed.get(item.checkpoint.name) is item:
            del self._unflushed[item.checkpoint.name]

    def _flush(self, item: _Unflushed) -> None:
        checkpoint, files = item.checkpoint, item.files
        if files is None:
            files = self._list_files(checkpoint)
        if files:
            self._store.sync(checkpoint.name, files)
        if item.marks and self._unflushed.get(checkpoint.name) is item:
            # Dying on the next line leaves a durable checkpoint that nobody calls so: its digests will be read.
            self._notes.update(checkpoint, durable=True)
            self._on_durable(checkpoint)

    def _list_files(self, checkpoint: CommittedCheckpoint) -> list[str]:
        child = self._store.child(checkpoint.name)
        manifest = read_manifest(child)
        if manifest is None:
            raise StoreNotFoundError(f"{child.url} is gone")
        return files_of(manifest, checkpoint.name, metadata=child.exists(layout.METADATA))

    def _not_flushed(self, item: _Unflushed, error: Exception, *, gone: bool) -> None:
        """Drops a checkpoint from the flushes and keeps everything older.

        It is not tried again: after one failed fsync the kernel calls the pages clean, and the next fsync would
        succeed without having written them. A later checkpoint that does reach the disk lets the deletions go on.
        """
        checkpoint = item.checkpoint
        if gone:
            _log.warning("checkpoint %s was removed from %s by someone else", checkpoint.name, self._store.url)
        else:
            _log.warning(
                "checkpoint %s could not be flushed to disk (%s); it may not survive a loss of power, so nothing older "
                "is deleted until a later one is flushed", checkpoint.name, error,
            )  # fmt: skip
        with self._changed:
            self._forget(item)
        self._on_kept(self.take_back(), checkpoint if gone else None)

    def _delete_all(self, doomed: Sequence[CommittedCheckpoint]) -> bool:
        clean = True
        for old in doomed:
            with self._changed:
                if old.name not in self._doomed:
                    continue  # taken back
                self._deleting = old.name
            error = self._delete(old)
            with self._changed:
                self._deleting = None
                if error is None:
                    del self._doomed[old.name]
                    self._changed.notify_all()
            if error is not None:
                _log.warning("checkpoint %s could not be deleted (%s); it is tried again later", old.name, error)
                clean = False
        return clean

    def _delete(self, old: CommittedCheckpoint) -> StorageError | RunInUseError | None:
        try:
            # The new driver may have taken over the very checkpoint that this one has no use for.
            self._before_deletion()
            delete_checkpoint(self._store, old.name, old.id)
        except (StorageError, RunInUseError) as error:
            return error
        self._notes.forget(old.name)
        return None
