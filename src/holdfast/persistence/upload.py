"""Stores the files of shards, several at once, each read once and digested on its way."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from holdfast.errors import CheckpointSourceError, StorageError
from holdfast.persistence import layout
from holdfast.persistence.retry import RetryPolicy
from holdfast.persistence.transfer import FileTransfer, UploadStopped, register_file, store_file
from holdfast.records import ShardReceipt, StagedFile, StagedShard, StoredFile
from holdfast.stores.base import Store
from holdfast.stores.local import LocalStore

_LOG = logging.getLogger("holdfast")
# Files of this size and above are a task each; smaller ones share one, so that hand-overs between threads do not
# cost more than the files.
_OWN_TASK_BYTES = 2 * 1024 * 1024
_TASK_BYTES = 8 * 1024 * 1024
_TASK_FILES = 256

Step = Callable[[FileTransfer, StagedFile], StoredFile]


class ShardFuture(Future[ShardReceipt]):
    """A shard on its way. It is done only when no thread touches its files or its target any more."""

    def __init__(self) -> None:
        super().__init__()
        self.stop_event = threading.Event()
        self.set_running_or_notify_cancel()

    def cancel(self) -> bool:
        """Asks the upload to stop soon; the future then ends with an error, as ever after its last thread.

        Returns:
            Always False, as for every future that runs: it is not over yet.
        """
        self.stop_event.set()
        return False


class Uploader:
    """The threads of a node that store files. Safe to use from several threads.

    Args:
        threads: How many files are on their way at once; by default twice the cores, 4 to 16.
        retry: How failures that pass by themselves are retried.
    """

    def __init__(self, threads: int | None = None, *, retry: RetryPolicy | None = None) -> None:
        self._threads = threads or max(4, min(16, (os.cpu_count() or 1) * 2))
        self._retry = retry or RetryPolicy()
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="holdfast-upload")
        self._guard = threading.Lock()
        self._running: set[ShardFuture] = set()
        self._is_closed = False

    def store_shard(
        self, shard: StagedShard, store: Store, prefix: str, *, on_bytes: Callable[[int], None] | None = None
    ) -> Future[ShardReceipt]:
        """Copies (or takes over) a shard's files to below `prefix`, several at once.

        Readers see nothing of it until the commit. The same name from another rank is not written again: this rank
        only digests its own file, and the merge of the receipts compares.

        Args:
            on_bytes: Told of stored bytes as they come, from several threads; a negative number takes back what a
                failed try had told.

        Returns:
            The receipt to come, or the first error: `ShardModifiedError` for a file that changed or vanished since it
            was staged, `CheckpointSourceError` for one that cannot be read, `StorageError` for a failed write. All
            threads have let go of the shard when it is done.
        """
        return self._run(shard, store, prefix, store_file, on_bytes)

    def register_shard(self, shard: StagedShard, store: Store, prefix: str) -> Future[ShardReceipt]:
        """Digests files that lie in their final place below `prefix`, without writing anything.

        Where the store is not a directory of this machine the receipt has no digests.

        Returns:
            As `store_shard`; `CheckpointSourceError` if the shard lies elsewhere.
        """
        place = store.local_path(prefix)
        root = layout.decode_path(shard.root)
        if place is not None and os.path.realpath(root) != os.path.realpath(place):
            refused = ShardFuture()
            refused.set_exception(
                CheckpointSourceError(
                    f"{root!r} cannot be registered without copying: it does not lie at {str(place)!r}"
                )
            )
            return refused
        step = register_file if place is not None else _undigested
        return self._run(shard, store, prefix, step, None)

    def release_adopted(self, shard: StagedShard) -> None:
        """Removes the directory of a shard that was taken over, once it is committed; never raises."""
        if not shard.adopt:
            return
        root = layout.decode_path(shard.root)
        try:
            LocalStore(root).delete_tree("")
        except StorageError as error:
            _LOG.warning("The directory %r of a stored checkpoint could not be removed: %s", root, error)

    def close(self) -> None:
        """Stops what is on its way, and waits for the threads; safe to repeat."""
        with self._guard:
            self._is_closed = True
            running = list(self._running)
        for future in running:
            future.cancel()
        self._pool.shutdown(wait=True)

    def _run(
        self, shard: StagedShard, store: Store, prefix: str, step: Step, on_bytes: Callable[[int], None] | None
    ) -> Future[ShardReceipt]:
        future = ShardFuture()
        transfer = FileTransfer(
            root=layout.decode_path(shard.root),
            store=store,
            prefix=prefix,
            rank=shard.rank,
            adopt=shard.adopt,
            on_bytes=on_bytes,
            retry=self._retry,
            stop=future.stop_event,
        )
        tasks = _split(shard.files)
        work = _ShardWork(shard, transfer, step, future, num_tasks=len(tasks), ended=self._ended)
        with self._guard:
            if self._is_closed:
                future.set_exception(StorageError("The upload did not begin: the run is being closed"))
                return future
            self._running.add(future)
            for task in tasks:
                self._pool.submit(work.run, task)
        if not tasks:
            work.finish()
        return future

    def _ended(self, future: ShardFuture) -> None:
        with self._guard:
            self._running.discard(future)


class _ShardWork:
    """One shard's files, shared by the threads that store them."""

    def __init__(
        self,
        shard: StagedShard,
        transfer: FileTransfer,
        step: Step,
        future: ShardFuture,
        *,
        num_tasks: int,
        ended: Callable[[ShardFuture], None],
    ) -> None:
        self._shard = shard
        self._transfer = transfer
        self._step = step
        self._future = future
        self._ended = ended
        self._guard = threading.Lock()
        self._left = num_tasks
        self._stored: list[StoredFile | None] = [None] * len(shard.files)
        self._error: BaseException | None = None

    def run(self, task: Sequence[int]) -> None:
        """Stores the files at some positions; the last task to end resolves the future."""
        stop = self._future.stop_event
        try:
            for position in task:
                if stop.is_set():
                    break
                self._stored[position] = self._step(self._transfer, self._shard.files[position])
        except BaseException as error:  # noqa: BLE001 - carried by the future
            with self._guard:
                self._error = self._error or error
            stop.set()
        with self._guard:
            self._left -= 1
            is_last = self._left == 0
        if is_last:
            self.finish()

    def finish(self) -> None:
        """Resolves the future."""
        self._ended(self._future)
        files = tuple(file for file in self._stored if file is not None)
        error = self._error
        if error is None and len(files) < len(self._stored):
            error = UploadStopped("")
        if isinstance(error, UploadStopped):
            error = StorageError(f"The upload of {self._transfer.root!r} was stopped before its end")
        if error is not None:
            self._future.set_exception(error)
            return
        receipt = ShardReceipt(rank=self._shard.rank, files=files, metadata=self._shard.metadata)
        self._future.set_result(receipt)


def _undigested(transfer: FileTransfer, file: StagedFile) -> StoredFile:
    return transfer.receipt(file, None)


def _split(files: Sequence[StagedFile]) -> list[list[int]]:
    """Positions of the files by task, the largest first, so that no long task begins last."""
    large = [position for position, file in enumerate(files) if file.size_bytes >= _OWN_TASK_BYTES]
    large.sort(key=lambda position: -files[position].size_bytes)
    tasks = [[position] for position in large]
    task: list[int] = []
    task_bytes = 0
    for position, file in enumerate(files):
        if file.size_bytes >= _OWN_TASK_BYTES:
            continue
        task.append(position)
        task_bytes += file.size_bytes
        if len(task) >= _TASK_FILES or task_bytes >= _TASK_BYTES:
            tasks.append(task)
            task, task_bytes = [], 0
    if task:
        tasks.append(task)
    return tasks


__all__ = ["RetryPolicy", "ShardFuture", "Uploader"]
