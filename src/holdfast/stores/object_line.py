"""How long the bytes of files may take on their way to and from a bucket.

A request has a limit of time for all of its data (`request_timeout`), by which a server that is silent is known. On a thin line that limit
says something else: what is on its way shares the line, as much as the memory of transfers holds, and none of it arrives in time though the
line was busy throughout. So after the first time-out of such a request, while which the server has answered others, the next have ten times as
long, until one shows that the line would carry all of it in time; and of a file few parts go at once, one more after each that
arrived. Fewer alone would not do: other files share the line, and parts that have begun cannot be told to wait.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TypeVar

from holdfast.stores.object_calls import Calls
from holdfast.stores.object_errors import is_timed_out
from holdfast.stores.object_memory import budget

_log = logging.getLogger("holdfast")
LONGER = 10
"""How many times the usual limit a request has on a thin line."""
SMALL_BYTES = 64 << 10
"""Of requests with no more bytes the answer takes the time, and not the bytes."""
_SHOWS_FROM_BYTES = 5 << 20
# They fill a thin line.
_FEW = 4
_T = TypeVar("_T")


class Line:
    """The network between this process and a bucket.

    Args:
        name: What it leads to, as the log calls it.
        limit_s: The usual limit of a request.
        calls: What is on its way.
    """

    def __init__(self, name: str, limit_s: float, calls: Calls) -> None:
        self._name = name
        self._limit_s = limit_s
        self._calls = calls
        self._is_thin = False
        self._most_parts = _FEW
        # Since bytes came late last: when that was, and how many came in time.
        self._late_s = 0.0
        self._carried_bytes = 0

    def is_thin_for(self, num_bytes: int) -> bool:
        """Whether a request with so many bytes needs the longer limit."""
        return self._is_thin and num_bytes > SMALL_BYTES

    def at_once(self, most: int) -> int:
        """How many parts of a file may be on their way, where `most` are on a usual line."""
        return min(most, self._most_parts) if self._is_thin else most

    async def carry(self, num_bytes: int, request: Callable[[], Awaitable[_T]]) -> _T:
        """What a request gives that carries so many bytes of files; on the loop of `object_calls`."""
        began_s = monotonic()
        try:
            result = await request()
        except Exception as error:
            # A server that is silent altogether is to be given up as soon as ever.
            is_alive = self._calls.answered_s > began_s
            # A connection that is not made says nothing of the line, nor what was not given its time.
            has_sent = "ConnectError" not in str(error) and monotonic() - began_s > 0.9 * self._limit_s
            if num_bytes > SMALL_BYTES and is_alive and has_sent and is_timed_out(error):
                self._came_late()
            raise
        self._carried(num_bytes, monotonic() - began_s)
        return result

    def _came_late(self) -> None:
        self._late_s, self._carried_bytes = monotonic(), 0
        if not self._is_thin:
            self._is_thin = True
            self._most_parts = _FEW
            _log.warning(
                "%s: bytes of files took longer than %g s (request_timeout); the line seems to be thin, so they have %g s from now on",
                self._name,
                self._limit_s,
                LONGER * self._limit_s,
            )

    def _carried(self, num_bytes: int, took_s: float) -> None:
        if not self._is_thin:
            return
        self._carried_bytes += num_bytes
        if num_bytes >= _SHOWS_FROM_BYTES:
            self._most_parts += 1
        # What one request shows is the least that the line can, for others share it; and so do all together, that may have paused.
        shows = num_bytes >= _SHOWS_FROM_BYTES and self._is_fast(num_bytes, took_s)
        if shows or (
            self._carried_bytes >= budget().limit_bytes
            and self._is_fast(self._carried_bytes, monotonic() - self._late_s)
        ):
            self._is_thin = False

    def _is_fast(self, num_bytes: int, took_s: float) -> bool:
        """Whether at that rate all that may be on its way would arrive in half of the usual limit."""
        return budget().limit_bytes * took_s < num_bytes * self._limit_s / 2
