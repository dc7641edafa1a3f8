"""What a run says of the checkpoints that were reported to it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.checkpoint import Checkpoint


class CheckpointStatus(enum.Enum):
    """How far a reported checkpoint has come.

    COMMITTED: it is stored; no validation was asked for.
    PENDING_VALIDATION: it is stored, and its validation has no outcome yet.
    VALIDATED: its validation ended well, and its metrics have joined the checkpoint's.
    VALIDATION_TIMEOUT: its validation took longer than it may.
    VALIDATION_FAILED: its validation raised.
    """

    COMMITTED = "COMMITTED"
    PENDING_VALIDATION = "PENDING_VALIDATION"
    VALIDATED = "VALIDATED"
    VALIDATION_TIMEOUT = "VALIDATION_TIMEOUT"
    VALIDATION_FAILED = "VALIDATION_FAILED"


def status_of(validation: str | None) -> CheckpointStatus:
    """The status of a committed checkpoint whose note says that of its validation (see `records.Note`)."""
    return _OF_VALIDATION.get(validation or "", CheckpointStatus.COMMITTED)


_OF_VALIDATION = {
    "pending": CheckpointStatus.PENDING_VALIDATION,
    "validated": CheckpointStatus.VALIDATED,
    "timeout": CheckpointStatus.VALIDATION_TIMEOUT,
    "failed": CheckpointStatus.VALIDATION_FAILED,
}


@dataclass(frozen=True)
class ReportedCheckpoint:
    """One checkpoint that was reported and committed.

    Attributes:
        checkpoint: Where it lies.
        metrics: What rank 0 reported with it, and what its validation added.
        status: How far it has come.
    """

    checkpoint: Checkpoint
    metrics: dict[str, Any]
    status: CheckpointStatus = CheckpointStatus.COMMITTED
