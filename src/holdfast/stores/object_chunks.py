"""Reads an object, or a part of it, once and in order: in ranges, several on their way at once, each handed on as it came."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future
from typing import NamedTuple

from holdfast.errors import StorageError, StorageInterruptedError, StoreNotFoundError
from holdfast.stores.base import BegunRead, PartRefusedError
from holdfast.stores.object_client import Client
from holdfast.stores.object_errors import has_no_ranges
from holdfast.stores.object_memory import budget
from holdfast.stores.object_requests import Piece, begin_get, begin_get_first, fetch, get

WHOLE_BYTES = 1 << 20
"""Up to here an object is one request."""
_RANGE_BYTES = 8 << 20
_AT_ONCE = 4


def begin(client: Client, name: str, size_bytes: int | None) -> BegunRead:
    """Asks for a small object; see `Store.begin_read`. One request, and a second where it is refused as a range."""
    if not size_bytes or not client.answers_ranges:
        whole = begin_get(client, name)
        return BegunRead(lambda: client.outcome("read", name, whole).data, whole.cancel)
    first = begin_get_first(client, name, size_bytes)

    def wait() -> memoryview:
        try:
            return memoryview(client.outcome("read", name, first))
        except StorageError as error:
            if error.may_pass or isinstance(error, StoreNotFoundError | StorageInterruptedError):
                raise
            if has_no_ranges(str(error)):
                client.answers_ranges = False
            return get(client, name).data  # of an object without bytes no range can be given, either

    return BegunRead(wait, first.cancel)


class _Asked(NamedTuple):
    num_bytes: int
    future: Future[Piece]


def chunks(client: Client, name: str, size_bytes: int) -> Generator[memoryview, None, None]:
    """All bytes of an object in order, each chunk until the next is asked for.

    Args:
        size_bytes: How many it has, as far as is known.

    Raises:
        PartRefusedError: It has another size, or the server does not answer ranges; nothing was given yet.
        StoreNotFoundError: There is none.
        StorageError: It could not be read, or was replaced meanwhile.
    """
    if size_bytes <= WHOLE_BYTES:
        yield get(client, name).data
    else:
        yield from part(client, name, size_bytes, 0, size_bytes)


def part(client: Client, name: str, size_bytes: int, start: int, end: int) -> Generator[memoryview, None, None]:
    """As `chunks`, from one byte of the object to another, which is not included."""
    shared, asked, next_start = budget(), deque[_Asked](), start
    e_tag: str | None = None
    try:
        while asked or next_start < end:
            while next_start < end and len(asked) < _AT_ONCE:
                num_bytes = min(_RANGE_BYTES, end - next_start)
                # Who has nothing on its way waits for memory; who has goes on with that.
                if not asked:
                    shared.take(num_bytes)
                elif not shared.try_take(num_bytes):
                    break
                span = (next_start, next_start + num_bytes)
                try:
                    future = client.calls.begin(functools.partial(fetch, client, name, span), bulk=True)
                except BaseException:
                    shared.give_back(num_bytes)
                    raise
                asked.append(_Asked(num_bytes, future))
                next_start += num_bytes
            first = asked.popleft()
            try:
                piece = _piece(client, name, first, size_bytes, is_first=e_tag is None)
                if e_tag is not None and piece.e_tag != e_tag:
                    raise StorageError(
                        f"Cannot read {client.place.root}/{name}: it was replaced while it was being read; read it again"
                    )
                e_tag = piece.e_tag or ""
                yield piece.data
                # Whoever took it may refer to it still, and its memory is about to be another's.
                piece.data.release()
            finally:
                shared.give_back(first.num_bytes)
    finally:
        for each in asked:
            each.future.cancel()
            shared.give_back(each.num_bytes)


def _piece(client: Client, name: str, asked: _Asked, size_bytes: int, *, is_first: bool) -> Piece:
    try:
        piece = client.outcome("read", name, asked.future)
    except (StoreNotFoundError, StorageInterruptedError):  # which says nothing of parts
        raise
    except StorageError as error:
        if is_first and not error.may_pass:
            raise PartRefusedError from error
        raise
    if piece.size_bytes != size_bytes or len(piece.data) != asked.num_bytes:
        if is_first:
            raise PartRefusedError
        raise StorageError(
            f"Cannot read {client.place.root}/{name}: it was replaced while it was being read; read it again"
        )
    return piece
