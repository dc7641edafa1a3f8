"""What the controller tells while a run goes on, for whoever shows it to a person."""

from __future__ import annotations

from typing import Protocol


class RunObserver(Protocol):
    """Every call is cheap, safe from any thread, and never raises."""

    def started(self, attempt: int, world_size: int, resumed_from: str | None) -> None:
        """A group of workers begins."""

    def reported(self, report: int, metrics: bytes) -> None:
        """Every rank has made a report; rank 0's metrics as stored JSON."""

    def uploading(self, name: str, total_bytes: int) -> None:
        """A shard of a checkpoint begins to be stored."""

    def uploaded_bytes(self, count: int) -> None:
        """So many bytes more are stored."""

    def committed(self, name: str, size_bytes: int, seconds: float, score: float | None) -> None:
        """A checkpoint exists."""

    def worker_line(self, rank: int, text: str, is_stderr: bool) -> None:
        """A worker printed a line."""

    def validation_line(self, name: str, text: str, is_stderr: bool) -> None:
        """The validation of a checkpoint printed a line, or a few."""

    def validated(self, name: str, metrics: bytes, seconds: float) -> None:
        """A checkpoint was validated; what was found as stored JSON."""

    def message(self, text: str) -> None:
        """Something that a person should know."""

    def failed(self, attempt: int, summary: str, will_restart: bool) -> None:
        """A group of workers has failed."""

    def finished(self, summary: str) -> None:
        """The run has ended."""
