"""The driver's own list of what its run holds, so that no report has to read storage to know it."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

import msgspec

from holdfast.metrics import merge_metrics
from holdfast.persistence.retention import Retention, RetentionPolicy
from holdfast.records import CommittedCheckpoint


class Ledger:
    """Checkpoints that are committed, undamaged and not given up by retention; safe for threads.

    Everything in it can be rebuilt from storage (`catalog.load`).
    """

    def __init__(
        self, checkpoints: Iterable[CommittedCheckpoint], policy: RetentionPolicy, pinned: AbstractSet[str]
    ) -> None:
        self._lock = threading.Lock()
        self._held = {checkpoint.name: checkpoint for checkpoint in checkpoints}
        self._pinned = pinned
        self._awaited: set[str] = set()
        self._retention = Retention(policy)

    def add(self, checkpoint: CommittedCheckpoint) -> list[CommittedCheckpoint]:
        """Takes in a new checkpoint; gives those that retention lets go of because of it.

        At the first addition that is whatever the policy has too many of, so that opening a run with another
        configuration deletes nothing before something newer is there.
        """
        with self._lock:
            self._held[checkpoint.name] = checkpoint
            names = self._retention.add(checkpoint, self._held.values(), self._staying)
            return [self._held.pop(name) for name in names]

    def hold(self, name: str) -> None:
        """Keeps a checkpoint whatever its score, until `settle`: its score is not known yet."""
        with self._lock:
            self._awaited.add(name)

    def settle(self, name: str, metrics: bytes | None) -> list[CommittedCheckpoint]:
        """Ends `hold`; gives what retention lets go of now.

        Args:
            metrics: What joins the checkpoint's own, as stored JSON.
        """
        with self._lock:
            self._awaited.discard(name)
            held = self._held.get(name)
            if held is not None and metrics is not None:
                self._held[name] = msgspec.structs.replace(held, metrics=merge_metrics(held.metrics, metrics))
            self._retention.forget()
            names = self._retention.look(self._held.values(), self._staying)
            return [self._held.pop(name) for name in names]

    @property
    def _staying(self) -> AbstractSet[str]:
        return self._pinned | self._awaited if self._awaited else self._pinned

    def restore(self, checkpoints: Iterable[CommittedCheckpoint]) -> None:
        """Takes back what retention let go of, where it has not been deleted yet."""
        with self._lock:
            for checkpoint in checkpoints:
                self._held[checkpoint.name] = checkpoint
            self._held = dict(sorted(self._held.items(), key=lambda item: (item[1].report_index, item[0])))
            self._retention.forget()

    def drop(self, checkpoint: CommittedCheckpoint) -> None:
        """Strikes out a checkpoint that turned out to be damaged or gone."""
        with self._lock:
            if (held := self._held.get(checkpoint.name)) is not None and held.id == checkpoint.id:
                del self._held[checkpoint.name]
                self._retention.forget()

    def mark_durable(self, checkpoint: CommittedCheckpoint) -> None:
        """Notes that a checkpoint's bytes survive a loss of power."""
        with self._lock:
            if (held := self._held.get(checkpoint.name)) is not None and held.id == checkpoint.id:
                self._held[checkpoint.name] = msgspec.structs.replace(held, durable=True)

    def get(self, name: str) -> CommittedCheckpoint | None:
        """The checkpoint of that name, or None."""
        return self._held.get(name)

    def snapshot(self) -> list[CommittedCheckpoint]:
        """All of them, in report order."""
        with self._lock:
            return list(self._held.values())
