"""How the ranks of one attempt have ended, and which of them failed of themselves."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from holdfast.worker import protocol


@dataclass
class Ends:
    """What became of an attempt's ranks.

    Attributes:
        failures: The ranks that failed of themselves.
        aftermath: The ranks that failed because others had, or because the run was being stopped.
        values: cloudpickle of the returned values by rank.
        interrupted: Ctrl-C ended the function in the user's own program.
        ending: What ranks are told since the attempt is ending; None while it is not.
        ending_since: When that began, by the monotonic clock.
        stopping: Whether somebody asked for the end.
    """

    failures: dict[int, BaseException] = field(default_factory=dict)
    aftermath: dict[int, BaseException] = field(default_factory=dict)
    values: dict[int, bytes | None] = field(default_factory=dict)
    interrupted: bool = False
    ending: protocol.Refused | None = None
    ending_since: float = 0.0
    stopping: bool = False

    @property
    def known(self) -> set[int]:
        """The ranks of which it is known how they ended."""
        return {*self.values, *self.failures, *self.aftermath}

    def begin_ending(self, refusal: protocol.Refused) -> bool:
        """From now on the attempt ends; False where it did already."""
        if self.ending is not None:
            return False
        self.ending = refusal
        self.ending_since = time.monotonic()
        return True

    def fail(self, rank: int, error: BaseException, *, by_us: bool = False) -> bool:
        """Notes a failed rank; True where the attempt begins to end with it.

        What we did to a rank because another had failed (a refused call, an interrupt, at last SIGKILL) is no failure of its own.

        Args:
            by_us: Its process ended as we end those.
        """
        by_us = by_us or isinstance(error, KeyboardInterrupt)
        if self.ending is not None and (self.stopping or by_us or self.ending.text in str(error)):
            self.aftermath[rank] = error
        else:
            self.failures[rank] = error
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        text = f"rank {rank} has failed, this attempt ends: {first}"
        return self.begin_ending(protocol.Refused("worker-died", text))
