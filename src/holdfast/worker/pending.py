"""What `report` returns."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.checkpoint import Checkpoint


@dataclass(frozen=True)
class PendingCheckpoint:
    """A reported checkpoint on its way into storage; in this version it has always arrived.

    Attributes:
        checkpoint: The committed checkpoint, or None where no rank reported one.
    """

    checkpoint: Checkpoint | None

    def done(self) -> bool:
        """Whether the checkpoint is committed."""
        return True

    def exception(self, timeout_s: float | None = None) -> BaseException | None:
        """Why it could not be committed, or None."""
        return None

    def result(self, timeout_s: float | None = None) -> Checkpoint | None:
        """The committed checkpoint; None where no rank reported one.

        Args:
            timeout_s: Seconds to wait at most.
        """
        return self.checkpoint
