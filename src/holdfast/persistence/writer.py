"""The write side of a run: all that its one driver does to storage goes through here."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from holdfast.config import CheckpointConfig
from holdfast.errors import StorageError, StoreExistsError
from holdfast.persistence import garbage, layout, lease
from holdfast.persistence.checkpoint_writer import CheckpointWriter
from holdfast.persistence.commit import taken
from holdfast.persistence.deletion import set_aside
from holdfast.persistence.durability import Durability
from holdfast.persistence.finding import refuse_foreign
from holdfast.persistence.kept import Keeper
from holdfast.persistence.ledger import Ledger
from holdfast.persistence.litter import Litter
from holdfast.persistence.lost_lines import lost_lines
from holdfast.persistence.metrics_log import encode_line
from holdfast.persistence.notes import NoteKeeper
from holdfast.persistence.opening import describe_policy, ensure_run_record, survey, this_process
from holdfast.persistence.predecessor import Predecessor, Traces, predecessor_of
from holdfast.persistence.recovery import Fingerprint, Fingerprints, examine
from holdfast.persistence.report_lines import ReportLines
from holdfast.persistence.retention import RetentionPolicy
from holdfast.persistence.staging_places import StagingPlaces
from holdfast.persistence.validation_records import ValidationRecords
from holdfast.records import CommittedCheckpoint, Manifest
from holdfast.stores.base import Store

if TYPE_CHECKING:
    from holdfast.persistence.upload import Uploader

_log = logging.getLogger("holdfast")
_P = ParamSpec("_P")
_T = TypeVar("_T")


class RunWriter:
    """A run, held by its driver from `open` to `close`.

    Attributes:
        name: The run's directory name.
        store: Rooted at the run's directory.
        run_id: A random text that tells this run from any other of the same name.
        epoch: The number of this drivership.
        first_attempt: The lowest number that no attempt of the run has had.
        first_report: The lowest index that no report of the run has had.
        strict: Whether a commit waits for the disk.
        predecessor: The newest checkpoint that is known to be whole: what did not change since is stored once.
        keeper: What this machine keeps of the newest checkpoint of a remote run.
        staging: Where workers of a remote run write.
        validations: What became of the checkpoints that are to be validated.
    """

    def __init__(
        self,
        store: Store,
        held: lease.Lease,
        *,
        name: str,
        run_id: str,
        policy: RetentionPolicy,
        strict: bool,
        keeper: Keeper,
        staging: StagingPlaces,
    ) -> None:
        """Use `open`; this takes over what it found."""
        found = held.survey.catalog
        self.name = name
        self.store = store
        self.run_id = run_id
        self.epoch = held.epoch
        self.first_attempt = held.survey.first_attempt
        self.first_report = held.survey.first_report
        self.strict = strict
        self._lease = held
        self._lines = ReportLines(store, self.epoch, self.first_attempt)
        self.keeper = keeper
        self.staging = staging
        self._litter = Litter(store)
        # Of checkpoints; two of one name would be stored at one place and mix.
        self._on_their_way: set[str] = set()
        # Names whose holders are no checkpoints to anyone: they give way when the name is wanted.
        self._unusable = set(found.void) | set(found.damaged)
        self._ledger = Ledger(found.checkpoints, policy, found.pinned)
        self._notes = NoteKeeper(store, found.notes)
        self._fingerprints = Fingerprints(store)
        self.predecessor: Predecessor | None = None
        self._uploader: Uploader | None = None
        self._uploader_lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="holdfast-commit")
        self._closed = False
        self._durability = Durability(
            store,
            self._notes,
            records=[layout.RUN_RECORD, layout.epoch_key(self.epoch)],
            on_durable=self._ledger.mark_durable,
            on_kept=self._kept,
            before_deletion=self._prepare_deletion,
            check_lease=self.check_lease,
        )
        self.validations = ValidationRecords(self._ledger, self._notes, self._durability, store, self.submit)
        self._durability.begin([checkpoint for checkpoint in found.checkpoints if not checkpoint.durable])

    @classmethod
    def open(
        cls,
        store: Store,
        *,
        name: str,
        checkpoint_config: CheckpointConfig,
        durability: str = "background",
        restart_cache_bytes: int | None = None,
        configuration: Mapping[str, str] | None = None,
        holder: str | None = None,
    ) -> RunWriter:
        """Becomes the driver of a run, new or not.

        Dying on any line of it leaves the run as it was for every reader, and free for the next driver.

        Args:
            store: Rooted at `<storage_path>/<name>`.
            durability: `background` or `strict`.
            restart_cache_bytes: How much of the newest checkpoint this machine keeps, where the store is remote.
            configuration: Of the whole job, as text, for whoever looks at the run later.
            holder: Who drives, as a person wants to read it; by default user, host and process.

        Raises:
            RunInUseError: A live driver holds the run.
            FormatError: A newer Holdfast drove it.
            ConfigurationError: It is a run of another program's, which is only read.
            StorageError: The directory cannot be used.
        """
        refuse_foreign(store)
        store.prepare()
        described = {**(configuration or {}), **describe_policy(checkpoint_config)}
        held = lease.acquire(
            store, name, holder=holder or this_process(), survey=lambda: survey(store), configuration=described
        )
        with contextlib.ExitStack() as undo:
            undo.callback(held.release)
            run_id = ensure_run_record(store, name, described)
            if removed := garbage.collect(store, epoch=held.epoch):
                _log.info("removed what earlier drivers of %s left behind: %s", store.url, ", ".join(removed))
            staging = StagingPlaces(store)
            undo.callback(staging.close)
            staging.take()
            keeper = Keeper(store, restart_cache_bytes)
            undo.callback(keeper.close)
            policy = RetentionPolicy.of(checkpoint_config)
            strict = durability == "strict"
            writer = cls(
                store, held, name=name, run_id=run_id, policy=policy, strict=strict, keeper=keeper, staging=staging
            )
            undo.pop_all()  # all of it is the writer's now
        try:
            writer._lines.add_lost(lost_lines(store, held.survey.catalog))
        except BaseException:
            writer._durability.hurry()
            with contextlib.suppress(StorageError):
                writer.close()
            raise
        return writer

    def begin_attempt(self, attempt: int) -> None:
        """Opens the log of a new life of the worker group, and removes what the last one left half written."""
        self._remove_staging()
        self._lines.begin_attempt(attempt)

    def log_report(
        self,
        *,
        report: int,
        checkpoint: str | None,
        metrics: bytes,
        other_ranks: list[bytes] | None,
        is_committed: bool = False,
    ) -> None:
        """Appends a report to the log; when it returns, the line survives the death of this process.

        (On a store that cannot append: a second later.)

        Args:
            metrics: Rank 0's, as stored JSON.
            other_ranks: Those of ranks 1, 2, … where one of them reported other metrics than rank 0.
            is_committed: Its checkpoint is there: where the line cannot be written now it is before the next one, and before that
                checkpoint is deleted.
        """
        line = encode_line(report, self._lines.attempt, time.time(), checkpoint, metrics, other_ranks)
        self._lines.add(line, is_committed=is_committed)

    def is_free(self, name: str) -> bool:
        """Whether no checkpoint of that name is kept, or on its way."""
        return name not in self._on_their_way and self._ledger.get(name) is None

    def begin_checkpoint(self, name: str, report: int) -> CheckpointWriter:
        """A place for a checkpoint to come.

        Waits, where retention has let go of an older one of that name, until that is deleted.

        Raises:
            CheckpointExistsError: A checkpoint of that name is kept, or on its way.
        """
        layout.check_name(name, "the checkpoint's directory name")
        if not self.is_free(name):
            raise taken(self.store, name)
        self._durability.await_free(name)
        self._on_their_way.add(name)
        return CheckpointWriter(self, name, report, self._lines.attempt)

    def submit(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Runs something on the thread of commits: one at a time, in the order of the calls."""
        return self._pool.submit(function, *args, **kwargs)

    def checkpoints(self) -> list[CommittedCheckpoint]:
        """What is committed, undamaged and not let go of by retention, in report order."""
        return self._ledger.snapshot()

    def store_of(self, name: str) -> Store:
        """The store with the checkpoint `name` as its root."""
        return self.store.child(name)

    def latest_valid(self) -> CommittedCheckpoint | None:
        """The newest checkpoint whose files verify; damaged ones are noted, told of, and left out from now on.

        Raises:
            StorageError: The store failed, which says nothing of the checkpoints.
        """
        skipped: list[str] = []
        while checkpoints := self._ledger.snapshot():
            newest = checkpoints[-1]
            finding = examine(self.store, newest, self._fingerprints, self.keeper.fetch)
            if finding.usable:
                if finding.manifest is not None and (finding.compared or self.predecessor is None):
                    self._fingerprints.remember(finding.manifest, finding.fingerprint)
                    self.predecessor = self._predecessor(finding.manifest, finding.fingerprint, None)
                if skipped:
                    _log.warning("%s; going on from %s instead", "; ".join(skipped), newest.name)
                return newest
            skipped.append(
                f"checkpoint {newest.name} " + ("is gone" if finding.gone else f"is damaged ({finding.damage})")
            )
            # What was to make room for the damaged one is needed again, where it is still there.
            self._ledger.restore(self._durability.take_back())
            self._ledger.drop(newest)
            self.predecessor = None
            self._unusable.add(newest.name)
            if not finding.gone:
                # Dying on the next line forgets what was found; the next driver finds it again.
                self._notes.update(newest, damaged=finding.damage)
        if skipped:
            _log.warning("%s; there is no other, so training starts from the beginning", "; ".join(skipped))
        return None

    def doubt(self, name: str, *, is_damaged: bool) -> None:
        """The next `latest_valid` compares digests again: an attempt failed that began with this checkpoint.

        Args:
            is_damaged: It found a checkpoint damaged. Else that is only possible, and digests are compared where nothing but times
                speaks for the bytes, once.
        """
        if is_damaged:
            self._fingerprints.forget()
        else:
            self._fingerprints.doubt(name)

    def hurry(self) -> None:
        """`close` leaves what the disk has not taken by now to the kernel, and deletions to the next start; nothing waits for a
        store that is silent.

        Safe in a signal handler.
        """
        self._durability.hurry()
        self.store.hurry()

    def close(self) -> None:
        """Finishes commits, flushes and deletions, closes the log and lets the next driver in; safe to repeat.

        Raises:
            StorageError: The last lines of the log could not be written. All else is done.
        """
        if self._closed:
            return
        self._closed = True
        with contextlib.ExitStack() as last:
            last.callback(self._lease.release)
            last.callback(self.staging.close)
            last.callback(self.keeper.close)
            self._pool.shutdown(wait=True)
            if self._uploader is not None:
                self._uploader.close()
            self._durability.close()
            self._remove_staging()
            self._litter.remove_all()
            self._lines.close()

    # What follows is for the checkpoints on their way (`checkpoint_owner.Owner`).

    def uploader(self) -> Uploader:
        """The threads that store files."""
        with self._uploader_lock:
            if self._uploader is None:
                from holdfast.persistence.upload import Uploader

                self._uploader = Uploader(store=self.store)
            return self._uploader

    def check_lease(self) -> None:
        """Looks whether this process still drives the run.

        Raises:
            RunInUseError: Another driver has taken it over.
            StorageError: The store did not say.
        """
        self._lease.check()

    def claim(self, name: str) -> None:
        """Frees a name for files that are about to come.

        Raises:
            CheckpointExistsError: Something lies there that is not ours to move.
        """
        self._litter.make_way(layout.partial_name(name, self.epoch, self._lines.attempt))
        if not self.store.exists(name):
            return
        if not self._litter.make_way(name):
            if name not in self._unusable:
                raise taken(self.store, name)
            try:
                set_aside(self.store, name)
            except StoreExistsError as error:
                raise taken(self.store, name) from error
            _log.warning("the damaged or void checkpoint %s was moved aside: its name is in use again", name)
        self._unusable.discard(name)

    def remember_litter(self, key: str) -> None:
        """Something could not be removed now; it is tried again when its place is needed, and at the end."""
        self._litter.add(key)

    def expect_validation(self, checkpoint: CommittedCheckpoint) -> None:
        """A checkpoint is about to be committed that is to be validated."""
        self._notes.update(checkpoint, validation="pending")

    def given_up(self, name: str) -> None:
        """A checkpoint on its way was given up: its name is free."""
        self._on_their_way.discard(name)

    def committed(
        self,
        checkpoint: CommittedCheckpoint,
        manifest: Manifest,
        files: Sequence[str] | None,
        traces: Traces | None,
        mark: str | None,
    ) -> None:
        """A checkpoint exists: it joins the list, retention decides, and the rest happens behind."""
        try:
            status = self._fingerprints.take(manifest)
            self.predecessor = self._predecessor(manifest, status, traces)
        except StorageError as error:
            _log.debug("checkpoint %s will be read when it is needed: %s", checkpoint.name, error)
        doomed = self._ledger.add(checkpoint)
        self._on_their_way.discard(checkpoint.name)
        self._durability.committed(checkpoint, files, doomed, mark)

    def _prepare_deletion(self) -> None:
        # A line that waits in memory can be told from the manifest of its checkpoint, so the line goes first.
        self._lines.settle()
        self._lease.check()

    def _predecessor(
        self, manifest: Manifest, fingerprint: Fingerprint | None, traces: Traces | None
    ) -> Predecessor | None:
        return predecessor_of(self.store, manifest, fingerprint, traces, self._is_kept)

    def _is_kept(self, manifest: Manifest) -> bool:
        held = self._ledger.get(manifest.name)
        return held is not None and held.id == manifest.id

    def _kept(self, back: Sequence[CommittedCheckpoint], gone: CommittedCheckpoint | None) -> None:
        self._ledger.restore(back)
        if gone is not None:
            self._ledger.drop(gone)

    def _remove_staging(self) -> None:
        """No worker lives: whatever lies there will never be reported."""
        self.staging.empty()
        if self.store.local_path() is not None and self.store.exists(layout.STAGING):
            self._litter.remove(layout.STAGING)
