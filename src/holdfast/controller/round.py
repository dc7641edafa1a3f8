"""One checkpoint on its way: shards are stored as ranks come, the commit follows when all have."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from holdfast.controller.meetings import ranks_text
from holdfast.errors import HoldfastError, ReportError
from holdfast.persistence import layout
from holdfast.worker import protocol
from holdfast.worker.answers import error_of
from holdfast.worker.handover import regular_files

if TYPE_CHECKING:
    from holdfast.controller.observer import RunObserver
    from holdfast.controller.reactor import Reactor
    from holdfast.persistence.checkpoint_writer import CheckpointWriter
    from holdfast.persistence.writer import RunWriter
    from holdfast.records import CommittedCheckpoint, ShardReceipt, StagedFile, StagedShard

Ending = Callable[["CommittedCheckpoint | None", "BaseException | None"], None]

# Storing takes cores from the worker that hands over the rest, so files wait for each other, but no longer than this: where a node
# can hold no more of them open, others come only when these are stored.
_HELD_S = 0.1


@dataclass
class _Awaited:
    """A shard whose files come open, one after another.

    Attributes:
        held: Open files, by path, that have come and are not being stored yet.
    """

    shard: StagedShard
    files: list[StagedFile]
    num_come: int = 0
    held: dict[str, tuple[StagedFile, int]] = field(default_factory=dict)


class CheckpointRound:
    """Gathers the shards of one report and commits them; calls back once, with a checkpoint or an error.

    Every rank that reported a shard must have delivered it: one failure fails the checkpoint, and what was stored of
    it is removed before anyone is told.

    Args:
        may_commit: Whether the checkpoints of all earlier reports are settled; `advance` asks again.
        files_closed: Told how many of the descriptors that came are closed.
    """

    def __init__(
        self,
        reactor: Reactor,
        writer: RunWriter,
        progress: RunObserver,
        attempt: int,
        report: int,
        ending: Ending,
        *,
        may_commit: Callable[[], bool],
        files_closed: Callable[[int], None],
    ) -> None:
        self.report = report
        self.num_bytes = 0
        self._reactor = reactor
        self._writer = writer
        self._progress = progress
        self._attempt = attempt
        self._ending: Ending | None = ending
        self._may_commit = may_commit
        self._files_closed = files_closed
        self._name: str | None = None
        self._named_by: int = -1
        self._checkpoint: CheckpointWriter | None = None
        self._receipts: list[ShardReceipt] = []
        self._awaited: dict[int, _Awaited] = {}
        self._storing = 0
        self._error: BaseException | None = None
        self._sealed: tuple[bytes, int] | None = None
        self._validates = False
        self._since = time.monotonic()

    @property
    def sealed(self) -> bool:
        """Whether every rank has come, so that nothing is missing but storage's own work."""
        return self._sealed is not None

    @property
    def committing(self) -> bool:
        """Whether its end has begun and cannot be stopped."""
        return self._ending is None

    @property
    def name(self) -> str:
        """What the checkpoint is, or will be, called."""
        return self._name or layout.checkpoint_name(self.report)

    def add(self, rank: int, call: protocol.ReportCall) -> None:
        """Begins to store a rank's shard, or to wait for its files."""
        shard = call.shard
        if shard is None or self._error is not None:
            return
        num_bytes = sum(file.size_bytes for file in shard.files)
        self.num_bytes += num_bytes
        try:
            checkpoint = self._open(rank, call.name or layout.checkpoint_name(self.report))
            self._progress.uploading(checkpoint.name, num_bytes)
            if call.in_place:
                checkpoint.register_shard(shard)
            elif call.hands_over:
                self._expect(rank, shard)
            else:
                self._follow(checkpoint.store_shard(shard, self._progress.uploaded_bytes))
        except HoldfastError as error:
            self._fail(error)

    def take(self, rank: int, message: protocol.Files | protocol.Abandoned, descriptors: list[int]) -> None:
        """Takes files that a rank handed over open, to be stored with the rest of them; the descriptors are closed when that is done."""
        awaited = self._awaited.get(rank)
        if isinstance(message, protocol.Abandoned):
            if awaited is not None:
                self._fail(error_of(message.kind, message.text))
            return
        if awaited is None:
            self._close(descriptors)
            return
        files = awaited.files[message.first : message.first + message.count]
        awaited.num_come += len(files)
        is_first = not awaited.held
        for file, descriptor in zip(files, descriptors, strict=True):
            awaited.held[file.path] = file, descriptor
        if awaited.num_come == len(awaited.files):
            del self._awaited[rank]
            self._store_held(awaited)
        elif is_first:
            self._reactor.after(_HELD_S, lambda: self._store_held(awaited))

    def _store_held(self, awaited: _Awaited) -> None:
        held, awaited.held = awaited.held, {}
        if not held:
            return
        files = tuple(file for file, _ in held.values())
        descriptors = {path: descriptor for path, (_, descriptor) in held.items()}
        part = msgspec.structs.replace(awaited.shard, files=files, metadata=None)
        assert self._checkpoint is not None
        try:
            future = self._checkpoint.store_shard(part, self._progress.uploaded_bytes, descriptors)
        except HoldfastError as error:
            self._close(list(descriptors.values()))
            self._fail(error)
            return
        self._follow(future, num_descriptors=len(held))

    def seal(self, metrics: bytes, world_size: int, *, validates: bool) -> None:
        """Every rank has come: commit as soon as everything is stored.

        Args:
            validates: The checkpoint is to be validated.
        """
        self._sealed = (metrics, world_size)
        self._validates = validates
        if self._error is None and self._checkpoint is not None:
            registered = self._checkpoint.look_at_registered()
            if registered is not None:
                self._follow(registered)
                return
        self.advance()

    def cancel(self, error: BaseException) -> None:
        """Gives the checkpoint up, once what is being stored has come to its end."""
        if self._ending is not None:
            self._fail(error)

    def advance(self) -> None:
        """Goes on to the commit, or to the end without one, where nothing has to be waited for any more."""
        if self._storing or self._ending is None:
            return
        if self._error is not None:
            self._give_up()
        elif self._sealed is not None and not self._awaited and self._checkpoint is not None and self._may_commit():
            metrics, world_size = self._sealed
            receipts = sorted(self._receipts, key=lambda receipt: receipt.rank)
            ending, self._ending = self._ending, None
            checkpoint = self._checkpoint

            def commit() -> CommittedCheckpoint:
                return checkpoint.commit(
                    receipts,
                    metrics=metrics,
                    world_size=world_size,
                    attempt=self._attempt,
                    validates=self._validates,
                )

            self._reactor.when_done(self._writer.submit(commit), lambda done: self._committed(done, ending))

    def _open(self, rank: int, name: str) -> CheckpointWriter:
        if self._checkpoint is None:
            self._name, self._named_by = name, rank
            self._checkpoint = self._writer.begin_checkpoint(name, self.report)
        elif name != self._name:
            raise ReportError(
                f"{ranks_text([self._named_by])} named the checkpoint of report {self.report} {self._name!r}, but rank {rank} "
                f"named it {name!r}; pass the same checkpoint_dir_name on every rank that reports a checkpoint"
            )
        return self._checkpoint

    def _expect(self, rank: int, shard: StagedShard) -> None:
        files = regular_files(shard)
        if files:
            self._awaited[rank] = _Awaited(shard, files)
        others = tuple(file for file in shard.files if file.kind != "file")
        if others or shard.metadata is not None or not files:
            assert self._checkpoint is not None
            self._follow(self._checkpoint.store_shard(msgspec.structs.replace(shard, files=others)))

    def _follow(self, future: Future[ShardReceipt], *, num_descriptors: int = 0) -> None:
        self._storing += 1
        self._reactor.when_done(future, lambda done: self._stored(done, num_descriptors))

    def _stored(self, future: Future[ShardReceipt], num_descriptors: int) -> None:
        self._storing -= 1
        if num_descriptors:
            self._files_closed(num_descriptors)
        error = future.exception()
        if error is None:
            self._receipts.append(future.result())
            self.advance()
        else:
            self._fail(error)

    def _close(self, descriptors: list[int]) -> None:
        for descriptor in descriptors:
            os.close(descriptor)
        self._files_closed(len(descriptors))

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
            for awaited in self._awaited.values():
                self._close([descriptor for _, descriptor in awaited.held.values()])
                awaited.held.clear()
            self._awaited.clear()
            if self._checkpoint is not None:
                self._checkpoint.stop()
        self.advance()

    def _give_up(self) -> None:
        ending, self._ending = self._ending, None
        error = self._error
        if ending is None:
            return
        if self._checkpoint is None:
            ending(None, error)
            return
        aborted = self._writer.submit(self._checkpoint.abort)
        self._reactor.when_done(aborted, lambda _: ending(None, error))

    def _committed(self, done: Future[CommittedCheckpoint], ending: Ending) -> None:
        error = done.exception()
        if error is not None:
            self._error, self._ending = error, ending
            self._give_up()
            return
        ending(done.result(), None)
