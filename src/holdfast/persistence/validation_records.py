"""What a run's notes say of validations, and what follows for retention."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

import msgspec

from holdfast.persistence import layout
from holdfast.persistence.durability import Durability
from holdfast.persistence.ledger import Ledger
from holdfast.persistence.logs import append_text
from holdfast.persistence.notes import NoteKeeper
from holdfast.records import CommittedCheckpoint
from holdfast.stores.base import Store


class ValidationRecords:
    """The driver's side of validations; see `RunWriter`.

    Args:
        submit: Runs something on the thread of commits.
    """

    def __init__(
        self,
        ledger: Ledger,
        notes: NoteKeeper,
        durability: Durability,
        store: Store,
        submit: Callable[[Callable[[], None]], Future[None]],
    ) -> None:
        self._ledger = ledger
        self._notes = notes
        self._durability = durability
        self._store = store
        self._submit = submit

    def hold(self, checkpoint: CommittedCheckpoint) -> None:
        """Keeps a checkpoint, which is noted as waiting for its validation, until that has an outcome."""
        self._ledger.hold(checkpoint.name)

    def end(
        self,
        checkpoint: CommittedCheckpoint,
        status: str,
        metrics: bytes | None,
        *,
        error: str | None = None,
        last_lines: str | None = None,
    ) -> Future[None]:
        """Notes the outcome, behind the call; its metrics join the checkpoint's in the ranking, and retention decides anew.

        Args:
            status: `validated`, `failed` or `timeout`.
            metrics: What the validation found, as stored JSON.
            error: Why it has not.
            last_lines: What is to stand at the end of its log.
        """

        def settle() -> None:
            # Dying before the note is written has it validated again. It comes first: a ranking that nobody could read again
            # must not have deleted anything.
            found = msgspec.Raw(metrics or b"null")
            self._notes.update(checkpoint, validation=status, validation_metrics=found, validation_error=error)
            self._durability.let_go(self._ledger.settle(checkpoint.name, metrics))
            if last_lines is not None:
                append_text(self._store, layout.validation_log_key(checkpoint.name), last_lines)

        return self._submit(settle)

    def pending(self) -> list[CommittedCheckpoint]:
        """What waits for a validation that no earlier driver came to, in report order."""
        return [each for each in self._ledger.snapshot() if self.status_of(each) == "pending"]

    def status_of(self, checkpoint: CommittedCheckpoint) -> str | None:
        """How far the validation of a checkpoint is; see `records.Note`."""
        note = self._notes.get(checkpoint)
        return note.validation if note is not None else None
