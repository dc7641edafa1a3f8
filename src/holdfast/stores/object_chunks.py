"""Reads an object once, from its start to its end: in ranges, several on their way at once, each handed on as it came."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from typing import NamedTuple

from holdfast.errors import StorageError, StoreNotFoundError
from holdfast.stores.object_client import Client
from holdfast.stores.object_memory import budget
from holdfast.stores.object_requests import Piece, fetch, get

WHOLE_BYTES = 1 << 20
"""Up to here an object is one request."""
_RANGE_BYTES = 8 << 20
_AT_ONCE = 4


class UnexpectedAnswerError(Exception):
    """The object, or the server, is not as was thought; another way to read it may do. Never leaves this package."""


class _Asked(NamedTuple):
    num_bytes: int
    future: Future[Piece]


def chunks(client: Client, name: str, size_bytes: int) -> Iterator[memoryview]:
    """The bytes of an object in order.

    Args:
        size_bytes: How many it has, as far as is known.

    Raises:
        UnexpectedAnswerError: It has another size, or the server does not answer ranges; nothing was given yet.
        StoreNotFoundError: There is none.
        StorageError: It could not be read, or was replaced meanwhile.
    """
    if size_bytes <= WHOLE_BYTES:
        yield get(client, name).data
        return
    shared, asked, next_start = budget(), deque[_Asked](), 0
    e_tag: str | None = None
    try:
        while asked or next_start < size_bytes:
            while next_start < size_bytes and len(asked) < _AT_ONCE:
                num_bytes = min(_RANGE_BYTES, size_bytes - next_start)
                # Who has nothing on its way waits for memory; who has goes on with that.
                if not asked:
                    shared.take(num_bytes)
                elif not shared.try_take(num_bytes):
                    break
                span = (next_start, next_start + num_bytes)
                asked.append(
                    _Asked(num_bytes, client.calls.begin(functools.partial(fetch, client, name, span), bulk=True))
                )
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
            finally:
                shared.give_back(first.num_bytes)
    finally:
        for each in asked:
            each.future.cancel()
            shared.give_back(each.num_bytes)


def _piece(client: Client, name: str, asked: _Asked, size_bytes: int, *, is_first: bool) -> Piece:
    try:
        piece = client.outcome("read", name, asked.future)
    except StoreNotFoundError:
        raise
    except StorageError as error:
        if is_first and not error.may_pass:
            raise UnexpectedAnswerError from error
        raise
    if piece.size_bytes != size_bytes or len(piece.data) != asked.num_bytes:
        if is_first:
            raise UnexpectedAnswerError
        raise StorageError(
            f"Cannot read {client.place.root}/{name}: it was replaced while it was being read; read it again"
        )
    return piece
