"""The files of one shard, divided among threads."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future

from holdfast.errors import StorageError
from holdfast.persistence.transfer import FileTransfer, Step, UploadStopped
from holdfast.records import ShardReceipt, StagedFile, StagedShard, StoredFile

# Copying from here on takes longer than handing a task to another thread, so a task is about this many bytes.
_TASK_BYTES = 4 * 1024 * 1024
# Smaller files cost calls, not bytes. Where the disk answers from memory one thread stores them three times as fast
# as four that take the interpreter from each other; where each call waits (a network mount) more threads join it.
_SMALL_BYTES = 64 * 1024
_PROBE_FILES = 16
_SLOW_FILE_S = 0.0003

# So many files a thread begins before it waits for the first, where the store can be asked ahead.
_BEGUN_AT_ONCE = 16

MakeStep = Callable[[FileTransfer, StagedFile], Step]


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


class ShardWork:
    """Stores the files of one shard and resolves its future.

    Args:
        step: What is done with each file.
        ended: Told when nothing of it runs any more, just before the future resolves.
        most_threads: How many threads may be at the small files at once.
    """

    def __init__(
        self,
        shard: StagedShard,
        transfer: FileTransfer,
        step: MakeStep,
        future: ShardFuture,
        *,
        ended: Callable[[ShardFuture], None],
        most_threads: int,
    ) -> None:
        self._shard = shard
        self._transfer = transfer
        self._step = step
        self._future = future
        self._ended = ended
        self._most_threads = most_threads
        self._guard = threading.Lock()
        self._running = 0
        self._small_runners = 0
        self._small: collections.deque[int] = collections.deque()
        self._stored: list[StoredFile | None] = [None] * len(shard.files)
        self._error: BaseException | None = None

    def start(self, pool: Executor) -> None:
        """Hands everything to the pool."""
        self._pool = pool
        tasks, small = _divide(self._shard.files)
        self._small.extend(small)
        runs = [(iter(task), False) for task in tasks]
        if small or not tasks:
            runs.append((self._next_small(), True))
            self._small_runners = 1
        # Counted before the first begins: else that could take itself for the last.
        self._running = len(runs)
        for positions, is_small in runs:
            self._submit(positions, is_small)

    def start_after(self, other: Future[None], pool: Executor) -> None:
        """Hands everything to the pool, now that something else is done; or ends as that did, if it failed."""
        error = StorageError("The upload did not begin") if other.cancelled() else other.exception()
        if error is None:
            self.start(pool)
        else:
            self._fail(error)
            self._finish()

    def _submit(self, positions: Iterator[int], is_small: bool) -> None:
        try:
            self._pool.submit(self._run, positions, is_small)
        except RuntimeError as error:  # the interpreter is shutting down
            self._fail(StorageError(f"The upload of {self._transfer.root!r} could not go on: {error}"))
            self._leave()

    def _run(self, positions: Iterator[int], is_small: bool) -> None:
        stop = self._future.stop_event
        begun: collections.deque[tuple[int, Step]] = collections.deque()
        try:
            num_files = 0
            since_s, cpu_s = time.perf_counter(), time.thread_time()
            for position in positions:
                if stop.is_set():
                    break
                step = self._step(self._transfer, self._shard.files[position])
                if not self._go_on(position, step):
                    begun.append((position, step))
                    if len(begun) == _BEGUN_AT_ONCE:
                        self._end(*begun.popleft())
                num_files += 1
                if is_small and num_files == _PROBE_FILES:
                    self._join_if_slow(time.perf_counter() - since_s, time.thread_time() - cpu_s)
                    num_files = 0
                    since_s, cpu_s = time.perf_counter(), time.thread_time()
        except BaseException as error:  # noqa: BLE001 - carried by the future
            self._fail(error)
        # Whatever happened: else files were still on their way when all is said to be over.
        for position, step in begun:
            try:
                self._end(position, step)
            except BaseException as error:  # noqa: BLE001 - as above
                self._fail(error)
        self._leave()

    def _go_on(self, position: int, step: Step) -> bool:
        """Whether that was the end of it."""
        try:
            next(step)
        except StopIteration as end:
            self._stored[position] = end.value
            return True
        return False

    def _end(self, position: int, step: Step) -> None:
        while not self._go_on(position, step):
            pass

    def _leave(self) -> None:
        with self._guard:
            self._running -= 1
            is_last = self._running == 0
        if is_last:
            self._finish()

    def _next_small(self) -> Iterator[int]:
        while True:
            try:
                yield self._small.popleft()
            except IndexError:
                return

    def _join_if_slow(self, wall_s: float, cpu_s: float) -> None:
        """Asks for another thread where this one mostly waits for the store."""
        if wall_s < _PROBE_FILES * _SLOW_FILE_S or cpu_s > wall_s / 2 or not self._small:
            return
        with self._guard:
            if self._small_runners >= self._most_threads:
                return
            self._small_runners += 1
            self._running += 1
        self._submit(self._next_small(), True)

    def _fail(self, error: BaseException) -> None:
        with self._guard:
            self._error = self._error or error
        self._future.stop_event.set()

    def _finish(self) -> None:
        self._transfer.close()
        self._ended(self._future)
        files = tuple(file for file in self._stored if file is not None)
        error = self._error
        if error is None and len(files) < len(self._stored):
            error = UploadStopped()
        if isinstance(error, UploadStopped):
            error = StorageError(f"The upload of {self._transfer.root!r} was stopped before its end")
        if error is not None:
            self._future.set_exception(error)
            return
        receipt = ShardReceipt(rank=self._shard.rank, files=files, metadata=self._shard.metadata)
        self._future.set_result(receipt)


def _divide(files: Sequence[StagedFile]) -> tuple[list[list[int]], list[int]]:
    """Positions of the larger files by task, the largest first so that no long task begins last; and of the small."""
    larger = [position for position, file in enumerate(files) if file.size_bytes >= _SMALL_BYTES]
    larger.sort(key=lambda position: -files[position].size_bytes)
    tasks: list[list[int]] = []
    room_bytes = 0
    for position in larger:
        size_bytes = files[position].size_bytes
        if size_bytes > room_bytes:
            tasks.append([])
            room_bytes = _TASK_BYTES
        tasks[-1].append(position)
        room_bytes -= size_bytes
    return tasks, [position for position, file in enumerate(files) if file.size_bytes < _SMALL_BYTES]
