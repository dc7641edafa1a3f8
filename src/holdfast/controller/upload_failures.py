"""Reports that had returned and whose checkpoints could not be stored, until somebody is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.worker import protocol
from holdfast.worker.answers import error_of

if TYPE_CHECKING:
    from holdfast.controller.ends import Ends
    from holdfast.controller.observer import RunObserver


class UploadFailures:
    """Keeps the last one for the next report, or for the end of the attempt; true while there is one.

    Args:
        raises: As `RunConfig.on_upload_error` says; otherwise each is a warning and nothing more.
    """

    def __init__(self, observer: RunObserver, *, raises: bool) -> None:
        self._observer = observer
        self._raises = raises
        self._last: tuple[int, protocol.Refused] | None = None

    def __bool__(self) -> bool:
        return self._last is not None

    def add(self, rank: int, report: int, refusal: protocol.Refused, *, is_ending: bool) -> None:
        """A report that has returned did not come to its end.

        Args:
            is_ending: The attempt ends already, for a reason of its own.
        """
        text = f"the checkpoint of report {report} could not be stored: {refusal.text}"
        self._observer.message(text)
        if self._raises and not is_ending:
            self._last = (rank, protocol.Refused(refusal.kind, text))

    def take(self) -> protocol.Refused | None:
        """What to tell in place of an answer; it is told once."""
        last, self._last = self._last, None
        return last[1] if last is not None else None

    def settle(self, ends: Ends) -> None:
        """The attempt is over: what nobody has been told is a failure of it, if it has no other."""
        last, self._last = self._last, None
        if last is not None and not ends.failures:
            rank, refusal = last
            ends.failures[rank] = error_of(refusal.kind, refusal.text)
