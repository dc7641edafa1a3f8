"""One checkpoint on its way: shards are stored as ranks come, the commit follows when all have."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from holdfast.controller.meetings import ranks_text
from holdfast.errors import HoldfastError, ReportError
from holdfast.persistence import layout
from holdfast.worker import protocol

if TYPE_CHECKING:
    from holdfast.controller.observer import RunObserver
    from holdfast.controller.reactor import Reactor
    from holdfast.persistence.checkpoint_writer import CheckpointWriter
    from holdfast.persistence.writer import RunWriter
    from holdfast.records import CommittedCheckpoint, ShardReceipt, StagedShard

Ending = Callable[["CommittedCheckpoint | None", "BaseException | None"], None]


class CheckpointRound:
    """Gathers the shards of one report and commits them; calls back once, with a checkpoint or an error.

    Every rank that reported a shard must have delivered it: one failure fails the checkpoint, and what was stored of
    it is removed before anyone is told.
    """

    def __init__(
        self, reactor: Reactor, writer: RunWriter, progress: RunObserver, attempt: int, report: int, ending: Ending
    ) -> None:
        self._reactor = reactor
        self._writer = writer
        self._progress = progress
        self._attempt = attempt
        self._report = report
        self._ending: Ending | None = ending
        self._name: str | None = None
        self._named_by: int = -1
        self._checkpoint: CheckpointWriter | None = None
        self._receipts: list[ShardReceipt] = []
        self._storing = 0
        self._error: BaseException | None = None
        self._sealed: tuple[bytes, int] | None = None
        self._since = time.monotonic()

    @property
    def sealed(self) -> bool:
        """Whether every rank has come, so that nothing is missing but storage's own work."""
        return self._sealed is not None

    def add(self, rank: int, call: protocol.ReportCall) -> None:
        """Begins to store a rank's shard."""
        shard = call.shard
        if shard is None or self._error is not None:
            return
        name = call.name or layout.checkpoint_name(self._report)
        try:
            self._open(rank, name)
            assert self._checkpoint is not None
            future = self._store(self._checkpoint, shard, in_place=call.in_place)
        except HoldfastError as error:
            self._error = error
            self._advance()
            return
        self._storing += 1
        self._reactor.when_done(future, self._stored)

    def seal(self, metrics: bytes, world_size: int) -> None:
        """Every rank has come: commit as soon as everything is stored."""
        self._sealed = (metrics, world_size)
        self._advance()

    def cancel(self, error: BaseException) -> None:
        """Gives the checkpoint up, once what is being stored has come to its end."""
        if self._error is None:
            self._error = error
        self._advance()

    def _open(self, rank: int, name: str) -> None:
        if self._name is None:
            self._name, self._named_by = name, rank
            self._checkpoint = self._writer.begin_checkpoint(name, self._report)
        elif name != self._name:
            raise ReportError(
                f"{ranks_text([self._named_by])} named the checkpoint of report {self._report} {self._name!r}, but rank {rank} "
                f"named it {name!r}; pass the same checkpoint_dir_name on every rank that reports a checkpoint"
            )

    def _store(self, checkpoint: CheckpointWriter, shard: StagedShard, *, in_place: bool) -> Future[ShardReceipt]:
        self._progress.uploading(checkpoint.name, sum(file.size_bytes for file in shard.files))
        if in_place:
            return checkpoint.register_shard(shard)
        return checkpoint.store_shard(shard, self._progress.uploaded_bytes)

    def _stored(self, future: Future[ShardReceipt]) -> None:
        self._storing -= 1
        error = future.exception()
        if error is None:
            self._receipts.append(future.result())
        elif self._error is None:
            self._error = error
        self._advance()

    def _advance(self) -> None:
        if self._storing or self._ending is None:
            return
        if self._error is not None:
            self._give_up()
        elif self._sealed is not None and self._checkpoint is not None:
            metrics, world_size = self._sealed
            receipts = sorted(self._receipts, key=lambda receipt: receipt.rank)
            ending, self._ending = self._ending, None
            checkpoint = self._checkpoint

            def commit() -> CommittedCheckpoint:
                return checkpoint.commit(receipts, metrics=metrics, world_size=world_size, attempt=self._attempt)

            self._reactor.when_done(self._writer.submit(commit), lambda done: self._committed(done, ending))

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
