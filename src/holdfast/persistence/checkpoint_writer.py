"""One checkpoint on its way into a run: its shards, its commit, or its end without one."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

import msgspec

from holdfast.errors import (
    CheckpointExistsError,
    EmptyCheckpointError,
    ReportError,
    RunInUseError,
    ShardModifiedError,
    StorageError,
    StorageInterruptedError,
    StorageUnavailableError,
)
from holdfast.persistence import layout
from holdfast.persistence.commit import commit, files_of, make_durable, place_of
from holdfast.persistence.lease import utc_now
from holdfast.persistence.manifest import committed_of
from holdfast.persistence.merge import merge_metadata, merge_receipts
from holdfast.persistence.predecessor import Traces
from holdfast.persistence.release import changed_while_shared, release
from holdfast.persistence.retry import RetryPolicy, retried
from holdfast.records import CommittedCheckpoint, Manifest, ShardReceipt, StagedShard

if TYPE_CHECKING:
    from holdfast.persistence.checkpoint_owner import Owner
    from holdfast.persistence.kept import KeptFiles

_log = logging.getLogger("holdfast")
# Larger lists are read again when their turn to be flushed comes, so that waiting checkpoints cost little memory.
_KEPT_FILES = 1000
_ABORT_WAIT_S = 60.0


class CheckpointWriter:
    """A checkpoint that is being stored. `commit` or `abort` ends it; both are safe to call from any thread."""

    def __init__(self, owner: Owner, name: str, report: int, attempt: int) -> None:
        self.name = name
        self.report = report
        self._owner = owner
        self._store = owner.store
        self._attempt = attempt
        self._lock = threading.Lock()
        self._in_place: bool | None = None
        self._place = name
        self._shards: list[StagedShard] = []
        self._registered: StagedShard | None = None
        self._futures: list[Future[ShardReceipt]] = []
        self._kept: KeptFiles | None = None
        self._traces = Traces()
        self._claimed: Future[None] | None = None
        self._may_exist = False
        self._ended = False

    def store_shard(
        self,
        shard: StagedShard,
        on_bytes: Callable[[int], None] | None = None,
        descriptors: dict[str, int] | None = None,
    ) -> Future[ShardReceipt]:
        """Begins to store files of a rank, all or a part; readers see nothing of them until the commit.

        Args:
            descriptors: Open files by path, to be read and closed, if they were handed over so.

        Returns:
            The receipt to come, or an error: where renaming is not possible, also those about the place.

        Raises:
            CheckpointExistsError: Something else lies under the checkpoint's name.
            ReportError: Another rank registered its files in place.
            StorageError: The place for the files could not be prepared.
        """
        with self._lock:
            if self._in_place is None:
                self._place = place_of(self._store, self.name, self._owner.epoch, self._attempt)
                if self._place == self.name:
                    # Requests that may take long, while whoever calls this has others to answer.
                    self._claimed = self._owner.uploader().submit(self._claim)
                else:
                    self._owner.claim(self.name)
                self._kept = self._owner.keeper.begin()
            self._begin(in_place=False)
            future = self._owner.uploader().store_shard(
                shard,
                self._store,
                self._place,
                on_bytes=on_bytes,
                descriptors=descriptors,
                # Not that of now: files may wait until a later one is committed, and this one let go of.
                predecessor=lambda: self._owner.predecessor,
                kept=self._kept,
                traces=self._traces,
                after=self._claimed,
            )
            self._shards.append(shard)
            self._futures.append(future)
            return future

    def register_shard(self, shard: StagedShard) -> None:
        """Takes note of a rank whose files lie at the checkpoint's final place, beside those of others.

        Raises:
            ReportError: Another rank's files are being copied.
        """
        with self._lock:
            self._begin(in_place=True)
            if self._registered is None or shard.rank < self._registered.rank:
                self._registered = shard

    def look_at_registered(self) -> Future[ShardReceipt] | None:
        """Reads what lies at the final place, once every rank has put there what it has to; None where none has.

        The receipt is the lowest such rank's: whose file is whose nobody can tell.
        """
        with self._lock:
            if self._registered is None:
                return None
            future = self._owner.uploader().register_shard(self._registered, self._store, self.name)
            self._futures.append(future)
            return future

    def commit(
        self,
        receipts: Sequence[ShardReceipt],
        *,
        metrics: bytes,
        world_size: int,
        attempt: int,
        validates: bool = False,
    ) -> CommittedCheckpoint:
        """Makes the checkpoint exist; when it returns, every reader sees it whole.

        Args:
            receipts: Of every rank that reported a shard.
            metrics: Rank 0's, as stored JSON.
            validates: It is to be validated, by this driver or, should that die, by the next.

        Raises:
            EmptyCheckpointError: No rank reported a single file.
            ShardCollisionError: Two ranks stored different bytes under one name.
            ShardModifiedError: A file that was taken over was written to.
            CheckpointExistsError: Something came to lie under the checkpoint's name.
            RunInUseError: Another driver has taken the run over.
            StorageError: The store failed. Under strict durability the checkpoint may exist nevertheless.
        """
        with self._lock:
            if self._ended:
                raise ReportError(f"checkpoint {self.name!r} was given up before it could be committed")
            manifest = Manifest(
                id=secrets.token_hex(16),
                name=self.name,
                report_index=self.report,
                created=utc_now(),
                epoch=self._owner.epoch,
                attempt=attempt,
                world_size=world_size,
                metrics=msgspec.Raw(metrics),
                files=merge_receipts(receipts),
            )
            metadata = merge_metadata(receipts)
            self._check_keys()
            self._check_adopted()
            if not manifest.files and metadata is None:
                raise self._empty()

            def step() -> CommittedCheckpoint:
                self._look_before(manifest)
                if validates:
                    # Dying on the next line leaves a note of a checkpoint that does not exist, which nobody reads. Noted
                    # after the commit, the wish could be lost although `report` has returned.
                    self._owner.expect_validation(committed_of(manifest))
                return self._commit(manifest, metadata)

            # Safe to repeat: what is there already is written anew, and a rename whose answer was lost is found done.
            committed = retried(step, f"The commit of checkpoint {self.name!r}", RetryPolicy())
            self._ended = True
            self._settle(committed, manifest, metadata)
            return committed

    def stop(self) -> None:
        """Asks what is being stored to end soon, with an error; `abort` follows. Never waits."""
        for future in list(self._futures):
            future.cancel()

    def abort(self) -> None:
        """Removes what was stored so far, unless it was committed; safe to repeat, never raises."""
        for future in self._futures:
            future.cancel()
        # A thread that still stores would make anew what is removed here.
        unfinished = wait(self._futures, _ABORT_WAIT_S).not_done
        with self._lock:
            if self._ended:
                return
            self._ended = True
            if self._kept is not None:
                self._kept.close()
            if unfinished:
                # What they bring may come at any moment, so nothing else may take the name.
                _log.warning("checkpoint %s was given up while %d uploads still hang", self.name, len(unfinished))
            if self._may_exist:
                # Without its files a manifest that comes late would be a damaged checkpoint. The mark stays, too: by it the next
                # start knows what to do with files that have no manifest. The name stays taken until then.
                _log.warning(
                    "checkpoint %s may have been committed nevertheless: the store had not said when it was given up",
                    self.name,
                )
                return
            # What was registered in place is the user's own, and stays.
            if self._in_place is False and self._is_claimed():
                self._remove_stored(may_grow=self._place == self.name and bool(self._traces.unanswered))
            if not unfinished:
                self._owner.given_up(self.name)

    def _commit(self, manifest: Manifest, metadata: str | None) -> CommittedCheckpoint:
        self._may_exist = False
        try:
            return commit(
                self._store, partial=self._place, manifest=manifest, metadata=metadata, strict=self._owner.strict
            )
        except (StorageUnavailableError, StorageInterruptedError):
            # The manifest may be there, or come yet.
            self._may_exist = self._place == self.name
            raise

    def _claim(self) -> None:
        self._owner.claim(self.name)
        # Dying on the next line leaves a mark without files; with files it says that they are ours.
        self._store.write(layout.pending_key(self.name), b"{}")

    def _is_claimed(self) -> bool:
        """Whether the name was free, so that what lies there now is this checkpoint's."""
        claimed = self._claimed
        return claimed is None or (claimed.done() and not claimed.cancelled() and claimed.exception() is None)

    def _remove_stored(self, *, may_grow: bool) -> None:
        """Removes what lies there.

        Args:
            may_grow: More may come, of a request that was given up. Then the mark stays, for the next start, and this is done again
                when the name is needed, and at the end.
        """
        try:
            # Where files lie at their final place, a driver that took over may be using the same name.
            self._owner.check_lease()
        except (RunInUseError, StorageError) as error:
            _log.warning("the remains of checkpoint %s are left where they are: %s", self.name, error)
            return
        if may_grow:
            self._owner.remember_litter(self._place)
        marks = [layout.pending_key(self.name)] if self._place == self.name and not may_grow else []
        for key in [self._place, *marks]:
            try:
                # Dying on the next line leaves the rest of a hidden directory, which the next start collects.
                self._store.delete_tree(key)
            except StorageError as error:
                _log.warning("the remains of checkpoint %s could not be removed yet: %s", self.name, error)
                self._owner.remember_litter(key)

    def _begin(self, *, in_place: bool) -> None:
        if self._ended:
            raise ReportError(f"checkpoint {self.name!r} was given up")
        if self._in_place is not None and self._in_place is not in_place:
            raise ReportError(
                f"checkpoint {self.name!r}: some ranks reported with checkpoint_upload_mode=NO_UPLOAD and others not; "
                "use the same mode on every rank of a report"
            )
        self._in_place = in_place

    def _empty(self) -> EmptyCheckpointError:
        place = f" at {self._store.url}/{self.name}, where it was registered" if self._in_place else ""
        return EmptyCheckpointError(
            f"checkpoint {self.name!r} of report {self.report} has no file{place}; write something into the directory "
            "on at least one rank, or report without a checkpoint"
        )

    def _check_keys(self) -> None:
        """What lay at a file's key already is another rank's, which the merge has compared, or nobody knows whose.

        Raises:
            CheckpointExistsError: It is no rank's.
        """
        # Where there is no renaming, such can come from a driver that has ended, or should have: a request of its that
        # arrives late.
        if strange := self._traces.strange():
            raise CheckpointExistsError(
                f"another program wrote {strange[0]!r} of checkpoint {self.name!r} while that was being stored at "
                f"{self._store.url} (a driver that was taken to be dead?); report it once more"
            )

    def _look_before(self, manifest: Manifest) -> None:
        """Whether this process still drives the run, and the store has all of it.

        Raises:
            RunInUseError: Another driver has taken the run over.
            StorageError: The store misses a file, lists another size, or did not say.
        """
        if self._in_place or self._place != self.name:  # the one is free, or the other
            self._owner.check_lease()
            if not self._in_place:
                self._confirm(manifest)
            return
        # Each is a request to a store that may be far away, so both at once.
        with ThreadPoolExecutor(1, thread_name_prefix="holdfast-lease") as pool:
            looked = pool.submit(self._owner.check_lease)
            try:
                self._confirm(manifest)
            except StorageError:
                looked.result()  # another driver is the better reason: it may have removed them
                raise
            looked.result()

    def _confirm(self, manifest: Manifest) -> None:
        """Nothing is committed that the store does not list.

        Raises:
            StorageError: It misses a file, or lists another size.
        """
        paths = {layout.decode_path(file.path): file for file in manifest.files if file.kind == "file"}
        tags = self._store.confirm(self._place, {path: file.size_bytes for path, file in paths.items()})
        self._traces.tags = {paths[path].path: tag for path, tag in tags.items()}

    def _check_adopted(self) -> None:
        """Files that were taken over still have their old names, too; nobody may have written to them meanwhile.

        Raises:
            ShardModifiedError: Somebody has.
        """
        place = self._store.local_path(self._place)
        for shard in self._shards if place is not None else ():
            if (path := changed_while_shared(shard, str(place))) is not None:
                raise ShardModifiedError(
                    f"{path!r} was written to after it was reported and before the checkpoint was committed; leave a "
                    "directory that you have given away alone"
                )

    def _settle(self, committed: CommittedCheckpoint, manifest: Manifest, metadata: str | None) -> None:
        """What follows the commit; a failure in here takes nothing back."""
        failure: StorageError | None = None
        if self._owner.strict:
            try:
                make_durable(self._store, partial=self._place, manifest=manifest, metadata=metadata)
            except StorageError as error:
                failure = error
        release(self._shards)
        files: Sequence[str] | None = None
        if self._owner.strict and failure is None:
            files = ()
        elif len(manifest.files) <= _KEPT_FILES:
            files = files_of(manifest, self.name, metadata=metadata is not None)
        mark = layout.pending_key(self.name) if self._place == self.name and not self._in_place else None
        self._owner.committed(committed, manifest, files, None if self._in_place else self._traces, mark)
        try:
            self._owner.keeper.committed(manifest, self._kept)
        except Exception as error:  # noqa: BLE001 - it makes a restart quick, and the checkpoint is there without it
            _log.warning("checkpoint %s will be fetched by a restart: %s", self.name, error)
        if failure is not None:
            raise failure
