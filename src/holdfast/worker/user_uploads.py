"""Checkpoints that a function of the user's stores (`checkpoint_upload_fn`) while training goes on."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from holdfast.checkpoint import Checkpoint
from holdfast.errors import DriverLostError, HoldfastError
from holdfast.stores.local_tree import remove_tree
from holdfast.worker import protocol
from holdfast.worker.handover import tell


class UserUploads:
    """Calls such functions in a thread, one after another, and tells the node of each what came of it.

    One at a time and in the order of the reports: the function may wait for those of other ranks.

    Args:
        files: Where the node is told.
    """

    def __init__(self, files: socket.socket) -> None:
        self._files = files
        self._thread: ThreadPoolExecutor | None = None
        self._begun: set[Future[None]] = set()

    def begin(self, index: int, store: Callable[[Checkpoint], object], checkpoint: Checkpoint, *, remove: bool) -> None:
        """Has a directory stored.

        Args:
            index: The report's.
            store: Stores it, and looks whether it lies where it belongs.
            remove: The directory is given away: it is moved aside at once, so that the caller may remove what it knows, and removed
                at the end.
        """
        if remove:
            checkpoint = _moved_aside(checkpoint)
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="holdfast-upload-fn")
        future = self._thread.submit(self._run, index, store, checkpoint, remove)
        self._begun.add(future)
        future.add_done_callback(self._begun.discard)

    def finish(self, limit_s: float | None) -> None:
        """Waits until all are stored; what is not after the limit is given up, and the node hears of it by the worker's end."""
        if self._thread is not None:
            wait(list(self._begun), limit_s)
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _run(self, index: int, store: Callable[[Checkpoint], object], checkpoint: Checkpoint, remove: bool) -> None:
        message: protocol.HandedOver = protocol.Uploaded(index)
        try:
            store(checkpoint)
        except HoldfastError as error:
            message = protocol.Abandoned(index, error.kind, str(error))
        except BaseException as error:  # noqa: BLE001 - whatever the user's function raises ends its checkpoint, and not this thread
            # Who reads of it in another `report`, or where training ended, sees nothing of where it came from.
            traceback.print_exc(file=sys.stderr)
            text = f"checkpoint_upload_fn of report {index} raised {type(error).__name__}: {error}"
            message = protocol.Abandoned(index, HoldfastError.kind, text)
        with contextlib.suppress(DriverLostError):
            tell(self._files, message)
        if remove:
            remove_tree(checkpoint.path)


def _moved_aside(checkpoint: Checkpoint) -> Checkpoint:
    """The same directory under another name beside its own; under its own where it cannot be moved."""
    parent, name = os.path.split(os.path.abspath(checkpoint.path))
    place = os.path.join(parent, f".{name}.holdfast-{secrets.token_hex(4)}")
    try:
        os.rename(checkpoint.path, place)
    except OSError:
        return checkpoint
    return Checkpoint(place)
