"""Stores the files of shards, several at once, each read once and digested on its way."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec

from holdfast.errors import CheckpointSourceError, HoldfastError, StorageError, StoreNotFoundError
from holdfast.persistence import layout
from holdfast.persistence.file_systems import shows_removed_files
from holdfast.persistence.known_digests import KnownDigests
from holdfast.persistence.listing import list_files
from holdfast.persistence.predecessor import Predecessor, Traces, no_predecessor
from holdfast.persistence.retry import RetryPolicy, retried
from holdfast.persistence.right_of_way import give_way
from holdfast.persistence.shard_work import MakeStep, ShardFuture, ShardWork
from holdfast.persistence.staging import stage
from holdfast.persistence.transfer import FileTransfer, register_file, store_file
from holdfast.records import ShardReceipt, StagedShard
from holdfast.stores.base import Store

if TYPE_CHECKING:
    from holdfast.persistence.kept import KeptFiles

_MOST_THREADS = 16


class Uploader:
    """The threads of a node that store files. Safe to use from several threads.

    Args:
        threads: How many files are on their way at once; by default twice the cores, 4 to 16, and 16 to a store that is not on this machine.
        store: Where the files will go: whether storing takes cores, or is mostly waiting.
        retry: How failures that pass by themselves are retried.
    """

    def __init__(
        self, threads: int | None = None, *, store: Store | None = None, retry: RetryPolicy | None = None
    ) -> None:
        copies = store is not None and _is_on_this_machine(store)
        by_cores = max(4, min(_MOST_THREADS, (os.cpu_count() or 1) * 2))
        # Where each waits for an answer most of its time, cores say nothing of how many there should be.
        self._threads = threads or (by_cores if copies or store is None else _MOST_THREADS)
        self._retry = retry or RetryPolicy()
        self._known = KnownDigests()
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="holdfast-upload")
        # Threads of their own, for what has once given way cannot take it back. One core is left to training, and no more threads than suit the
        # cores take turns with the one that answers a report.
        beside = min(self._threads, max(1, (os.cpu_count() or 1) - 1)) if copies else threads or by_cores
        self._beside = ThreadPoolExecutor(beside, "holdfast-upload-beside", initializer=give_way)
        self._guard = threading.Lock()
        self._running: set[ShardFuture] = set()
        self._is_closed = False

    def store_shard(
        self,
        shard: StagedShard,
        store: Store,
        prefix: str,
        *,
        on_bytes: Callable[[int], None] | None = None,
        descriptors: dict[str, int] | None = None,
        predecessor: Callable[[], Predecessor | None] = no_predecessor,
        kept: KeptFiles | None = None,
        traces: Traces | None = None,
        after: Future[None] | None = None,
    ) -> Future[ShardReceipt]:
        """Copies (or takes over) a shard's files to below `prefix`, several at once.

        Readers see nothing of it until the commit. The same name from another rank is not written again: this rank
        only digests its own file, and the merge of the receipts compares.

        Args:
            on_bytes: Told of stored bytes as they come, from several threads; a negative number takes back what a
                failed try had told.
            descriptors: Open files, by path, that are read instead of what lies in the shard's directory; they are
                closed when the shard is done, however it ends. Training goes on beside it, so the threads give way to it.
            predecessor: Gives, when a file's turn comes, a checkpoint whose files are linked to, or copied by the store, where they are
                equal.
            kept: Keeps the files open once they are stored.
            traces: What all shards of the checkpoint come upon.
            after: Nothing is stored before this is done, and nothing where it fails: its error is the shard's.

        Returns:
            The receipt to come, or the first error: `ShardModifiedError` for a file that changed or vanished since it
            was staged, `CheckpointSourceError` for one that cannot be read, `StorageError` for a failed write. All
            threads have let go of the shard when it is done.
        """
        return self._run(shard, store, prefix, store_file, on_bytes, descriptors, predecessor, kept, traces, after)

    def register_shard(self, shard: StagedShard, store: Store, prefix: str) -> Future[ShardReceipt]:
        """Lists and digests files that lie in their final place below `prefix`, without writing anything.

        Where the store is not a directory of this machine they are listed only, and the receipt has no digests.

        Returns:
            As `store_shard`; `CheckpointSourceError` if the shard lies elsewhere.
        """
        place = store.local_path(prefix)
        if place is None:
            return self._register_remote(shard, store.child(prefix))
        root = layout.decode_path(shard.root)
        if os.path.realpath(root) != os.path.realpath(place):
            return _refused(
                CheckpointSourceError(
                    f"{root!r} cannot be registered without copying: it does not lie at {str(place)!r}"
                )
            )
        try:
            staged = stage(root, shard.rank)
        except HoldfastError as error:
            return _refused(error)
        return self._run(staged, store, prefix, register_file, None)

    def _register_remote(self, shard: StagedShard, place: Store) -> Future[ShardReceipt]:
        future = ShardFuture()

        def look() -> ShardReceipt:
            files = [msgspec.structs.replace(file, rank=shard.rank) for file in list_files(place)]
            try:
                metadata = place.read(layout.METADATA).decode()
            except StoreNotFoundError:
                metadata = None
            return ShardReceipt(rank=shard.rank, files=tuple(files), metadata=metadata)

        def run() -> None:
            try:
                future.set_result(retried(look, f"Listing {place.url!r}", self._retry, future.stop_event))
            except BaseException as error:  # noqa: BLE001 - carried by the future
                future.set_exception(error)

        with self._guard:
            if self._is_closed:
                return _refused(StorageError("The upload did not begin: the run is being closed"))
            self._pool.submit(run)
        return future

    def close(self) -> None:
        """Stops what is on its way, and waits for the threads; safe to repeat."""
        with self._guard:
            self._is_closed = True
            running = list(self._running)
        for future in running:
            future.cancel()
        for pool in (self._pool, self._beside):
            pool.shutdown(wait=True)

    def _run(
        self,
        shard: StagedShard,
        store: Store,
        prefix: str,
        step: MakeStep,
        on_bytes: Callable[[int], None] | None,
        descriptors: dict[str, int] | None = None,
        predecessor: Callable[[], Predecessor | None] = no_predecessor,
        kept: KeptFiles | None = None,
        traces: Traces | None = None,
        after: Future[None] | None = None,
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
            descriptors=descriptors or {},
            predecessor=predecessor,
            known=self._known,
            kept=kept,
            traces=traces or Traces(),
        )
        work = ShardWork(shard, transfer, step, future, ended=self._ended, most_threads=self._threads)
        with self._guard:
            if self._is_closed:
                transfer.close()
                future.set_exception(StorageError("The upload did not begin: the run is being closed"))
                return future
            self._running.add(future)
            pool = self._pool if descriptors is None else self._beside
            if after is None:
                work.start(pool)
        if after is not None:
            after.add_done_callback(lambda done: work.start_after(done, pool))
        return future

    def submit(self, function: Callable[[], None]) -> Future[None]:
        """Does something that uploads wait for.

        Raises:
            StorageError: The run is being closed.
        """
        with self._guard:
            if self._is_closed:
                raise StorageError("The upload did not begin: the run is being closed")
            return self._pool.submit(function)

    def _ended(self, future: ShardFuture) -> None:
        with self._guard:
            self._running.discard(future)


def _is_on_this_machine(store: Store) -> bool:
    place = store.local_path()
    try:
        return place is not None and not shows_removed_files(str(place))
    except OSError:  # it is made by the first who writes there
        return True


def _refused(error: HoldfastError) -> Future[ShardReceipt]:
    future: Future[ShardReceipt] = Future()
    future.set_exception(error)
    return future
