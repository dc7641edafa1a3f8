"""The node keeps the newest committed checkpoint of a remote run, so that a restart fetches nothing that is still here.

While it stores a checkpoint the node has its files open. It keeps them open, until a newer one is committed or the run
ends: no byte is copied, whatever becomes of the files' names, and nothing is left behind by a crash. A worker of the next
attempt opens them as `/proc/<node>/fd/<number>`, and compares what it copies with the digest in the manifest. So what has
been written to since, or is another file by now, is not believed but fetched.

What is not kept so (an earlier driver's checkpoint, one that was too large) must be fetched once. An earlier driver's is fetched when it is
verified. The copy which the workers share then stays, see `restore.py`, and what asks for a part of it takes it from there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from holdfast.errors import DamagedCheckpointError, StorageError
from holdfast.persistence.file_systems import shows_removed_files
from holdfast.persistence.open_files import RaisedLimit, most_open_files
from holdfast.persistence.room import free_bytes
from holdfast.records import CommittedCheckpoint, Manifest, StagedFile
from holdfast.stores.base import Store

if TYPE_CHECKING:
    from holdfast.persistence.kept_copies import KeptCopies

_LOG = logging.getLogger("holdfast")
_DESCRIPTORS = "/proc/self/fd"
# Of what is free where a file lies, memory or disk.
_MOST_OF_ROOM = 0.5
# Of the files that a program may open; half of them are for what workers hand over.
_CHECKPOINT_PART = 8
_RUN_PART = 4


class Keeper:
    """What the node keeps of one run.

    Args:
        run: Rooted at the run's directory; of one on a local path nothing is kept.
        limit_bytes: How large it may be; None for a part of what is free, 0 for nothing.
    """

    def __init__(self, run: Store, limit_bytes: int | None) -> None:
        self.limit_bytes = limit_bytes
        self._run = run
        self._works = run.local_path() is None and limit_bytes != 0 and os.path.isdir(_DESCRIPTORS)
        self._limit = RaisedLimit() if self._works else None
        self._guard = threading.Lock()
        self._open: set[KeptFiles] = set()
        self._newest: tuple[str, KeptFiles] | None = None
        self._copies: KeptCopies | None = None
        self._is_complete = False
        self._num_files = 0
        # Letting go of the last descriptor of a large file takes time: the file system frees its space.
        self._releases: ThreadPoolExecutor | None = None

    def begin(self) -> KeptFiles | None:
        """For the files of a checkpoint that is being stored; None where nothing is kept."""
        if not self._works:
            return None
        kept = KeptFiles(self)
        with self._guard:
            self._open.add(kept)
        return kept

    def committed(self, manifest: Manifest, kept: KeptFiles | None) -> None:
        """A checkpoint is the newest now: its files stay open, and what was kept before is let go of, behind the call."""
        held = kept.places() if kept is not None else {}
        with self._guard:
            older, self._newest = self._newest, (manifest.name, kept) if kept is not None else None
            copies, self._copies = self._copies, None
            self._is_complete = all(file.path in held for file in manifest.files if file.kind == "file")
        if older is None and copies is None:
            return
        try:
            if self._releases is None:
                self._releases = ThreadPoolExecutor(1, thread_name_prefix="holdfast-release")
            self._releases.submit(_release, older[1] if older is not None else None, copies)
        except RuntimeError as error:  # no thread can be started, or the program is ending
            _LOG.debug("what was kept is let go of at once: %s", error)
            _release(older[1] if older is not None else None, copies)

    def places(self, name: str) -> dict[str, str]:
        """Where this machine's processes find files of a checkpoint, by path, until a newer one is committed."""
        with self._guard:
            newest, copies = self._newest, self._copies
        if newest is not None and newest[0] == name:
            return newest[1].places()
        return copies.places if copies is not None and copies.name == name else {}

    def fetch(self, checkpoint: CommittedCheckpoint, manifest: Manifest) -> bool:
        """Has a verified copy of a checkpoint lie on this machine until a newer one is committed.

        Returns:
            False where nothing was read of the store: there can be no copy, or somebody else had made it before.

        Raises:
            DamagedCheckpointError: It is not what was reported.
        """
        from holdfast.persistence.kept_copies import KeptCopies

        if not self._works:
            return False
        self._let_copies_go()
        try:
            copies = KeptCopies.of(self._run.child(checkpoint.name), checkpoint, self._has_room)
            if copies is None:
                return False
            try:
                is_verified = copies.fetch(manifest)
            except BaseException:
                copies.release()
                raise
        except DamagedCheckpointError:
            raise
        except (OSError, StorageError) as error:
            _LOG.debug("checkpoint %s could not be fetched beforehand: %s", checkpoint.name, error)
            return False
        with self._guard:
            self._copies = copies
        return is_verified

    def prepare_restart(self, checkpoint: CommittedCheckpoint) -> dict[str, str]:
        """As `places`; what of it has to be fetched nevertheless is fetched once only, until a newer one is committed."""
        # Here and not above: only remote runs need it, and `import holdfast` is quick.
        from holdfast.persistence.kept_copies import KeptCopies

        places = self.places(checkpoint.name)
        is_wanted = self._copies is not None and self._copies.name == checkpoint.name
        if not self._works or is_wanted or (places and self._is_complete):
            return places
        self._let_copies_go()  # of one that has proved to be damaged
        try:
            self._copies = KeptCopies.of(self._run.child(checkpoint.name), checkpoint, self._has_room)
        except (OSError, StorageError) as error:
            _LOG.debug("a copy of checkpoint %s does not stay: %s", checkpoint.name, error)
        return places

    def close(self) -> None:
        """Lets go of everything; safe to repeat."""
        with self._guard:
            left, self._newest = list(self._open), None
        self._works = False
        if self._releases is not None:
            self._releases.shutdown(wait=True)
        for kept in left:
            kept.close()
        self._let_copies_go()
        if self._limit is not None:
            self._limit.restore()
            self._limit = None

    def _let_copies_go(self) -> None:
        with self._guard:
            copies, self._copies = self._copies, None
        if copies is not None:
            copies.release()

    def closed(self, kept: KeptFiles) -> None:
        """Files of a checkpoint are not kept any more."""
        with self._guard:
            self._open.discard(kept)

    def count(self, num_files: int) -> bool:
        """Counts files that are opened, or closed; False where there would be too many."""
        with self._guard:
            if num_files > 0 and self._num_files + num_files > most_open_files() // _RUN_PART:
                return False
            self._num_files += num_files
            return True

    def _has_room(self, place: str, size_bytes: int) -> bool:
        return size_bytes <= room_bytes(place, self.limit_bytes)


class KeptFiles:
    """The files of one checkpoint, open. Safe to use from several threads."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._guard = threading.Lock()
        self._descriptors: dict[str, int] = {}
        self._left_bytes: dict[int | None, float] = {}
        self._fit: dict[int, bool] = {}
        self._most = most_open_files() // _CHECKPOINT_PART
        self._is_closed = False

    def add(self, file: StagedFile, descriptor: int) -> None:
        """Keeps an open file that was just stored, where there is room for it; never raises.

        Args:
            descriptor: The caller's own, which it closes.
        """
        with self._guard:
            if self._is_closed or file.path in self._descriptors or len(self._descriptors) >= self._most:
                return
            try:
                if not self._take_room(descriptor, file.size_bytes) or not self._keeper.count(1):
                    return
                try:
                    # Opened anew: a copy of the descriptor would share its lock, and a worker's memory be in use for ever.
                    self._descriptors[file.path] = os.open(
                        f"{_DESCRIPTORS}/{descriptor}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
                    )
                except OSError:
                    self._keeper.count(-1)
                    raise
            except OSError as error:
                _LOG.debug("%s is not kept for a restart: %s", file.path, error)

    def places(self) -> dict[str, str]:
        """Where each file is found by other processes of this user."""
        process = os.getpid()
        with self._guard:
            return {path: f"/proc/{process}/fd/{descriptor}" for path, descriptor in self._descriptors.items()}

    def close(self) -> None:
        """Closes them; safe to repeat."""
        with self._guard:
            self._is_closed = True
            descriptors = list(self._descriptors.values())
            self._descriptors.clear()
        for descriptor in descriptors:
            with contextlib.suppress(OSError):  # of an earlier write; it is closed all the same
                os.close(descriptor)
        self._keeper.count(-len(descriptors))
        self._keeper.closed(self)

    def _take_room(self, descriptor: int, size_bytes: int) -> bool:
        device = os.fstat(descriptor).st_dev
        if device not in self._fit:
            # Whoever removes a directory there would find it not empty as long as we have its files open.
            self._fit[device] = not shows_removed_files(descriptor)
        # A limit is one for all; what is free, is so beside each file.
        limit = self._keeper.limit_bytes
        where = device if limit is None else None
        if where not in self._left_bytes:
            self._left_bytes[where] = room_bytes(descriptor, limit)
        if not self._fit[device] or size_bytes > self._left_bytes[where]:
            return False
        self._left_bytes[where] -= size_bytes
        return True


def _release(kept: KeptFiles | None, copies: KeptCopies | None) -> None:
    """Lets go of an older checkpoint; never raises."""
    for each in (kept.close if kept is not None else None, copies.release if copies is not None else None):
        try:
            if each is not None:
                each()
        except Exception as error:  # noqa: BLE001 - nobody looks at this thread
            _LOG.warning("what was kept of an older checkpoint could not be let go of: %s", error)


def room_bytes(place: int | str, limit_bytes: int | None) -> float:
    """How much may be kept beside a file, or in a directory.

    Raises:
        OSError: There is no such place.
    """
    return free_bytes(place) * _MOST_OF_ROOM if limit_bytes is None else limit_bytes
