"""A report's line in the metrics log."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holdfast.controller.meetings import Meeting
    from holdfast.persistence.writer import RunWriter


def metrics_of(meeting: Meeting) -> list[bytes]:
    """What each rank of a complete report measured, as stored JSON."""
    return [meeting.report(rank).metrics for rank in range(meeting.world_size)]


def log_once(writer: RunWriter, meeting: Meeting, name: str | None, *, is_committed: bool) -> None:
    """Writes the line, if it has not been.

    Args:
        name: The checkpoint's, or None.
        is_committed: The checkpoint is there, and does not only come.

    Raises:
        StorageError: It could not be written.
    """
    if meeting.logged:
        return
    meeting.logged = True
    metrics = metrics_of(meeting)
    writer.log_report(
        report=meeting.report(0).index,
        checkpoint=name,
        metrics=metrics[0],
        other_ranks=metrics[1:] if any(other != metrics[0] for other in metrics) else None,
        is_committed=is_committed,
    )
