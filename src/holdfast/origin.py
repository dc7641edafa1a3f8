"""`resume_from=`: what a run begins with that has no checkpoint of its own."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any

from holdfast.checkpoint import Checkpoint
from holdfast.errors import ConfigurationError
from holdfast.persistence import layout
from holdfast.persistence.finding import find_run
from holdfast.reported import ReportedCheckpoint
from holdfast.run import Run
from holdfast.stores import Store, open_store


class Origin:
    """A checkpoint of somewhere else, found when it is needed. Safe for threads.

    Args:
        given: A `Checkpoint`, one of a run's `ReportedCheckpoint`s, a `Run` (its latest checkpoint is meant), or the path or URL of either.

    Raises:
        ConfigurationError: It is nothing of these, or a path of a kind that this version cannot read.
    """

    def __init__(self, given: Any) -> None:
        if isinstance(given, ReportedCheckpoint):
            given = given.checkpoint
        if not isinstance(given, Checkpoint | Run | str | os.PathLike):
            raise ConfigurationError(
                f"resume_from must be a Checkpoint, a Run, or the path or URL of a checkpoint or a run, not {type(given).__name__}: {given!r}"
            )
        # A URL of a wrong kind is told here, where the script has it.
        self._given: Checkpoint | Run | Store = given if isinstance(given, Checkpoint | Run) else open_store(given)
        self._found: Checkpoint | None = None
        self._held = contextlib.ExitStack()
        self._is_held = False
        self._lock = threading.Lock()

    @property
    def place(self) -> str:
        """What was given, as a person wants to read it; without a secret."""
        return self._given.path if isinstance(self._given, Checkpoint | Run) else self._given.url

    def open(self) -> Checkpoint:
        """The checkpoint, its bytes compared with its manifest where it has one. The same one at each call.

        From elsewhere it is fetched for that; the copy is the one that the workers of this machine read, and it stays until `let_go`.

        Raises:
            ConfigurationError: No checkpoint lies there.
            RunNotFoundError: Runs lie one level further down.
            DamagedCheckpointError: Its bytes are not those that were reported.
            StorageError: It cannot be read.
            FormatError: Its manifest, or the record of its run, cannot be read.
        """
        with self._lock:
            if self._found is None or not self._is_held:
                found = self._found or self._find()
                self._held.enter_context(found.as_directory())
                self._is_held = True
                # Just compared: no worker needs to read all of it for that again.
                self._found = Checkpoint._from_store(found._store, filesystem=found.filesystem, verified=True)
            return self._found

    @property
    def is_held(self) -> bool:
        """Whether it was opened and not let go of."""
        return self._is_held

    @property
    def is_of_this_process(self) -> bool:
        """Whether no other process can reach what was found, as in this one's memory."""
        return self._found is not None and self._found._store.is_of_this_process

    def hurry(self, *, on: bool = True) -> None:
        """What `open` waits for of the store fails within seconds; see `Store.hurry`. Safe in a signal handler."""
        given = self._given
        (given if isinstance(given, Store) else given._store).hurry(on=on)

    def let_go(self) -> None:
        """Its copy is no longer needed here; safe to repeat."""
        with self._lock:
            self._is_held = False
            self._held.close()

    def _find(self) -> Checkpoint:
        given = self._given
        if isinstance(given, Checkpoint):
            if not given.files():
                raise ConfigurationError(
                    f"resume_from={self.place!r}: there is no file in it; give a checkpoint's directory"
                )
            return given
        if isinstance(given, Run):
            return self._latest(given)
        if given.exists(layout.MANIFEST):
            return Checkpoint._from_store(given)
        reader = find_run(given)
        if reader is not None:
            return self._latest(Run._of(reader))
        if next(iter(given.list(recursive=True)), None) is None:
            raise ConfigurationError(f"resume_from={self.place!r}: neither a checkpoint nor a run lies there")
        # Files and no run: a checkpoint that has no manifest, as Ray Train's have none.
        return Checkpoint._from_store(given)

    def _latest(self, run: Run) -> Checkpoint:
        latest = run.latest
        if latest is None:
            raise ConfigurationError(
                f"resume_from={self.place!r}: that run has no checkpoint that can be read; see Run.verify()"
            )
        return latest.checkpoint
