"""Sends an open file to an object store: each byte read once, in bounded memory, and looked for before it is believed.

An object appears whole or not at all, on every such store: a body that breaks off makes none. What has to be guarded against
is the opposite, a write that is thought to have failed, or to have been another's, because the answer to it was lost. Each
write therefore carries a random text of its own (`NONCE`), by which it is recognised.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

from holdfast.errors import (
    StorageAccessError,
    StorageError,
    StorageUnavailableError,
    StoreExistsError,
    StoreNotFoundError,
)
from holdfast.stores.base import Hasher
from holdfast.stores.local_copy import read_exactly
from holdfast.stores.local_errors import storage_error
from holdfast.stores.object_client import Client
from holdfast.stores.object_line import SMALL_BYTES
from holdfast.stores.object_memory import budget
from holdfast.stores.object_requests import begin_put, delete, look, pages, put_parts

_log = logging.getLogger("holdfast")
# Larger files go up in parts, several at once.
WHOLE_BYTES = 8 << 20
# The least that S3 takes. A store far away gives each connection a part of what the network has (Amazon names 90 MB/s), so what counts is how
# many parts are on their way, and that is memory by their size. A file that finds no memory for so many goes with the least.
_PART_BYTES = 5 << 20
_MOST_AT_ONCE = 24
_LEAST_AT_ONCE = 3
# Of S3 and Google Cloud; Azure has 50,000.
_MOST_PARTS = 10_000
_STEP_BYTES = 64 << 10
_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
# The files of this process that are going up in parts.
_large: set[object] = set()


def put_descriptor(client: Client, name: str, source: int, size_bytes: int, hasher: Hasher | None) -> None:
    """Stores the first `size_bytes` of an open file as a new object.

    Raises:
        StoreExistsError: Something lies at the name; the hasher was not fed.
        StorageError: Reading or sending failed, and no object is there; `__cause__` is the `OSError` of a failed reading.
    """
    if size_bytes <= WHOLE_BYTES:
        # The library holds what it sends once more.
        with budget().hold(2 * size_bytes):
            _begin_whole(client, name, source, size_bytes, hasher)()
        return
    part_bytes = max(_PART_BYTES, _rounded_up(-(-size_bytes // _MOST_PARTS)))
    me = object()
    _large.add(me)  # before the look: who begins at the same time is to be counted
    try:
        if look(client, name) is not None:
            raise _exists(client, name)
        with _memory_for_parts(part_bytes, -(-size_bytes // part_bytes)) as at_once:
            _put_parts(client, name, _Parts(source, size_bytes, part_bytes, hasher), at_once)
    finally:
        _large.discard(me)


@contextlib.contextmanager
def _memory_for_parts(part_bytes: int, num_parts: int) -> Iterator[int]:
    """Holds memory for parts: this file's share of all that there is, as far as it is left now.

    Yields:
        How many parts may be on their way at once.
    """
    shared = budget()
    # The library's threads allocate them, and of what each has freed the allocator keeps half as much again.
    taken_bytes = part_bytes * 3 // 2
    # One is being read while the others are on their way; none, where all are.
    most = min(num_parts, _MOST_AT_ONCE + 1)
    least = min(most, _LEAST_AT_ONCE + 1)
    share = max(least, min(most, shared.limit_bytes // taken_bytes // max(1, len(_large))))
    held_bytes = min(least * taken_bytes, shared.limit_bytes)
    shared.take(held_bytes)
    try:
        while held_bytes < share * taken_bytes and shared.try_take(taken_bytes):
            held_bytes += taken_bytes
        held = held_bytes // taken_bytes
        yield held if held == num_parts else max(1, held - 1)
    finally:
        shared.give_back(held_bytes)


def _rounded_up(num_bytes: int) -> int:
    return -(-num_bytes // _STEP_BYTES) * _STEP_BYTES


def begin_small(
    client: Client, name: str, source: int, size_bytes: int, hasher: Hasher | None
) -> Callable[[], None] | None:
    """As `put_descriptor` of a small file, which is read and on its way when this returns; what it returns waits for the end.

    Small ones are not counted in the memory of transfers: who begins many before it waits has some megabytes on their way.

    Returns:
        None for a larger file, and where more than one request is needed.
    """
    if size_bytes > SMALL_BYTES or not client.exclusive:
        return None
    return _begin_whole(client, name, source, size_bytes, hasher)


def _begin_whole(client: Client, name: str, source: int, size_bytes: int, hasher: Hasher | None) -> Callable[[], None]:
    nonce = client.nonce()
    data = _read(client, name, source, size_bytes)
    if not client.exclusive and look(client, name) is not None:
        raise _exists(client, name)
    wait = begin_put(client, name, data, only_new=client.exclusive, nonce=nonce)

    def finish() -> None:
        try:
            wait()
        except (StoreExistsError, StorageUnavailableError) as error:
            # The answer was lost; or the library, sending again what got none, met its own object.
            _settle(client, name, nonce, size_bytes, error)
        try:
            if hasher is not None:
                hasher.update(data)
        except BaseException:
            _remove(client, name)
            raise

    return finish


def _put_parts(client: Client, name: str, parts: _Parts, at_once: int) -> None:
    nonce = client.nonce()
    try:
        put_parts(client, name, parts, parts.size_bytes, nonce=nonce, part_bytes=parts.part_bytes, at_once=at_once)
    except StorageError as error:
        if parts.error is not None:
            _raise_reading_error(client, name, parts.error)
        # The answer to the last step may have been lost, and the step, sent again, have found nothing left to do.
        _settle(client, name, nonce, parts.size_bytes, error)


class _Parts:
    """The parts of an open file in order, each read and hashed when the library asks for it.

    Attributes:
        error: What ended the reading early, if anything did.
    """

    def __init__(self, source: int, size_bytes: int, part_bytes: int, hasher: Hasher | None) -> None:
        self.size_bytes = size_bytes
        self.part_bytes = part_bytes
        self.error: BaseException | None = None
        self._source = source
        self._hasher = hasher
        self._offset = 0

    def __iter__(self) -> _Parts:
        return self

    def __next__(self) -> bytes:
        if self._offset >= self.size_bytes:
            raise StopIteration
        try:
            data = read_exactly(self._source, self._offset, min(self.part_bytes, self.size_bytes - self._offset))
            if self._hasher is not None:
                self._hasher.update(data)
        except BaseException as error:
            self.error = error
            raise
        self._offset += len(data)
        return data


def _read(client: Client, name: str, source: int, size_bytes: int) -> bytes:
    try:
        return read_exactly(source, 0, size_bytes)
    except OSError as error:
        _raise_reading_error(client, name, error)


def _raise_reading_error(client: Client, name: str, error: BaseException) -> NoReturn:
    if isinstance(error, OSError):
        raise storage_error("store", f"{client.place.root}/{name}", error) from error
    raise error


def _settle(client: Client, name: str, nonce: str, size_bytes: int, error: StorageError) -> None:
    """Finds out what became of a write that got no clear answer; returns if it has happened, whole.

    A server that keeps no user metadata cannot tell whose the object is. Its size then has to do: nothing lay there before,
    and what another rank writes there at this instant is compared by its digest when the ranks' files are merged.

    Raises:
        StoreExistsError: Another's object is there.
        StorageError: Nothing is there: what the write itself raised, where that says it; so, too, where the store does not let itself
            be asked, for the answer to a look has no body, and so no reason.
    """
    try:
        found = look(client, name)
    except StorageAccessError:
        # These two say nothing without a look: something may lie there, ours or another's.
        if isinstance(error, (StoreExistsError, StoreNotFoundError)):
            raise
        raise error from None
    if isinstance(error, StoreNotFoundError):
        # What would complete an upload in parts was sent again for want of an answer, and finds none to complete: the server may be
        # at it still, for minutes where that means copying gigabytes.
        for pause_s in _PAUSES_S:
            if found is not None:
                break
            time.sleep(pause_s)
            found = look(client, name)
    if found is None:
        if isinstance(error, (StoreExistsError, StoreNotFoundError)):
            raise StorageUnavailableError(
                f"Cannot store {client.place.root}/{name}: it was taken away while it was being written; try again"
            ) from None
        raise error
    is_ours = found.nonce == nonce or not client.keeps_nonces
    if not is_ours or found.size_bytes != size_bytes:
        raise _exists(client, name) from None


def confirm(client: Client, prefix: str, sizes: Mapping[str, int]) -> Mapping[str, str]:
    """Looks whether objects that were put are there: an answer that says "done" is no proof. One request a thousand of them.

    Args:
        prefix: Below which they are.
        sizes: Their bytes, by name.

    Returns:
        Their tags, by name, as far as the service gives such.

    Raises:
        StorageUnavailableError: One is not there.
        StorageError: One has another size.
    """
    missing = dict(sizes)
    tags = {}
    for page in pages(client, prefix):
        for entry in page:
            expected = missing.pop(entry.name, None)
            if expected is None:
                continue
            if entry.e_tag is not None:
                tags[entry.name] = entry.e_tag
            if expected != entry.size_bytes:
                raise StorageError(
                    f"Cannot store {client.place.root}/{entry.name}: {entry.size_bytes} bytes lie there instead of {expected}; "
                    "another program writes there, or something between here and the store alters what it passes on"
                )
    if missing:
        raise StorageUnavailableError(
            f"Cannot store {client.place.root}/{min(missing)}: the store said that it has it, and now does not list it"
            + (f" (nor {len(missing) - 1} others)" if len(missing) > 1 else "")
        )
    return tags


def _remove(client: Client, name: str) -> None:
    """Takes back what was stored; the error to be seen is the one that led here."""
    try:
        delete(client, name, action="remove")
    except StorageError as error:
        _log.warning("an object that is not wanted any more could not be removed: %s", error)


def _exists(client: Client, name: str) -> StoreExistsError:
    return StoreExistsError(f"Cannot store {client.place.root}/{name}: something lies there")
