"""A link to a server that is far away, as a proxy of TCP: answers come late, and each connection is slow.

python -m servers.link PORT TARGET_PORT

On one machine a server answers within a millisecond, and a single connection moves as much as there are cores for. A store of objects elsewhere
is the opposite: there it counts how much a client has on its way at once. So each answer's first byte is held back, each connection moves
a limited number of bytes a second in each direction, and all together no more than leaves the server's cores idle.

The figures are Amazon's for S3, the rates divided by twenty, for this machine has no network card to fill. What S3 itself says:
- "consistent small object latencies (and first-byte-out latencies for larger objects) of roughly 100–200 milliseconds"
  (docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html); "median latencies are often in the tens of milliseconds" for less
  than 512 KB (optimizing-performance-design-patterns.html, there). Half of the least of the former is taken for all.
- "one concurrent request for each 85–90 MB/s of desired network throughput" (optimizing-performance-design-patterns.html).
- All together: a network card of 16 Gb/s. The same page has 10, 25 and 100 Gb/s. A twentieth of it is half of what Ceph's gateway does with a core.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from servers.process import free_port, running

_SCALE = 20
LATENCY_S = 0.05
"""From a request's last byte to its answer's first, beyond what the server takes."""
CONNECTION_BYTES_PER_S = 85e6 / _SCALE
"""Of one connection, in each direction."""
TOTAL_BYTES_PER_S = 2e9 / _SCALE
"""Of all connections together, in each direction."""

# "Go on with the body" is no answer: the server has looked at nothing yet.
_CONTINUE = b"HTTP/1.1 100"


@contextmanager
def running_link(target_port: int, log: Path | None = None) -> Iterator[int]:
    """Starts a link to a port of this machine, and ends it.

    Yields:
        The link's own port, on 127.0.0.1.

    Raises:
        ServerError: It does not start.
    """
    port = free_port()
    command = [sys.executable, "-m", "servers.link", str(port), str(target_port)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with running(command, log, port=port, environment=environment):
        yield port


class _Lane:
    """Something that moves a limited number of bytes a second."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_s = 0.0

    def arrival_s(self, now_s: float, num_bytes: int) -> float:
        """When bytes that come to it now have passed it, behind those that came before."""
        self._free_s = max(self._free_s, now_s) + num_bytes / self._bytes_per_s
        return self._free_s


class _End(asyncio.Protocol):
    """One end of a connection: what is read there is written to the other end when the link has let it pass.

    No more is read meanwhile, so whoever sends is held up.

    Args:
        total: What all connections share in this direction.
        answers: Whether it is the server that is read from.
    """

    def __init__(self, total: _Lane, *, answers: bool) -> None:
        self.other: _End
        self.transport: asyncio.Transport | None = None
        self._lane = _Lane(CONNECTION_BYTES_PER_S)
        self._total = total
        self._answers = answers
        self._is_asked = False
        self._is_on_its_way = False
        self._has_ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        arrival_s = max(self._lane.arrival_s(now_s, len(data)), self._total.arrival_s(now_s, len(data)))
        if self._answers and self._is_asked and not data.startswith(_CONTINUE):
            self._is_asked = False
            arrival_s += LATENCY_S
        self._is_on_its_way = True
        self.transport.pause_reading()
        loop.call_at(arrival_s, self._pass_on, data)

    def _pass_on(self, data: bytes) -> None:
        self._is_on_its_way = False
        self.other.was_asked()
        self.other.write(data)
        if self._has_ended:
            self.other.close()
        elif self.transport is not None:
            self.transport.resume_reading()

    def was_asked(self) -> None:
        self._is_asked = True

    def write(self, data: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def pause_writing(self) -> None:
        if self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other.transport is not None and not self.other._is_on_its_way:
            self.other.transport.resume_reading()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._has_ended = True
        if not self._is_on_its_way:
            self.other.close()


class _Client(_End):
    """The end at the client, who connects first."""

    def __init__(self, up: _Lane, down: _Lane, target_port: int) -> None:
        super().__init__(up, answers=False)
        self.other = _End(down, answers=True)
        self.other.other = self
        self._target_port = target_port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None
        self.transport.pause_reading()
        self._connecting = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: self.other, "127.0.0.1", self._target_port)
        except OSError:
            self.close()
            return
        if self._has_ended:
            self.other.close()
        elif self.transport is not None:
            self.transport.resume_reading()


async def _serve(port: int, target_port: int) -> None:
    up, down = _Lane(TOTAL_BYTES_PER_S), _Lane(TOTAL_BYTES_PER_S)
    server = await asyncio.get_running_loop().create_server(
        lambda: _Client(up, down, target_port), "127.0.0.1", port, backlog=1024
    )
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(*map(int, sys.argv[1:3])))
