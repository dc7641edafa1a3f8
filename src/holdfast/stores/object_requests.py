"""The requests that an object store can be asked, each a call that can be broken off; nothing else here knows obstore's functions.

Every error is a `StorageError` that names the object; see `object_errors`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, ParamSpec

from holdfast.errors import (
    StorageError,
    StorageInterruptedError,
    StorageUnavailableError,
    StoreExistsError,
    StoreNotFoundError,
)
from holdfast.stores.object_client import Client, Resends
from holdfast.stores.object_line import SMALL_BYTES

# A name that all three services take for user metadata (Azure's must be an identifier).
NONCE = "holdfastwrite"
# As many as one request of S3 deletes, and as one page of a listing has.
PAGE = 1000
# As much as one request of S3 copies.
_MOST_COPIED_BYTES = 5 << 30
_log = logging.getLogger("holdfast")
_P = ParamSpec("_P")


@dataclass(frozen=True)
class Found:
    """An object that is there.

    Attributes:
        nonce: What the write that made it was called by its writer, or None where it or the server did not say.
    """

    size_bytes: int
    nonce: str | None
    e_tag: str | None = None


@dataclass(frozen=True)
class Listed:
    """An object, as a listing shows it."""

    name: str
    size_bytes: int
    mtime_s: float
    e_tag: str | None = None


@dataclass(frozen=True)
class Piece:
    """Bytes of an object.

    Attributes:
        data: What came, all of it or the range that was asked for.
        size_bytes: Of the whole object.
        e_tag: What tells this object from others of its name, where the server says it.
    """

    data: memoryview
    size_bytes: int
    e_tag: str | None


def look(client: Client, name: str, *, probe: bool = False) -> Found | None:
    """What lies at a name; None for nothing. One request.

    Raises:
        StorageError: The store did not say.
    """
    obstore, handle = client.obstore, client.handle(_resends(probe))

    async def ask() -> Found:
        result = await obstore.get_async(handle, name, options={"head": True})
        attributes = {str(each).lower(): str(value) for each, value in result.attributes.items()}
        return Found(int(result.meta["size"]), attributes.get(NONCE), _plain(result.meta["e_tag"]))

    try:
        return client.call("look for", name, ask, once=probe)
    except StoreNotFoundError:
        return None


def is_taken(client: Client, name: str) -> bool:
    """Whether an object has this name, or a name below it. Two requests at once.

    Raises:
        StorageError: The store did not say.
    """
    below = _begin_first_page(client, name)
    try:
        if look(client, name) is None:
            return client.outcome("list", name, below) is not None
        return True
    finally:
        below.cancel()


def _begin_first_page(client: Client, prefix: str) -> Future[Any]:
    handle = client.handle()

    async def ask() -> Any:
        return await anext(client.obstore.list(handle, prefix, chunk_size=1), None)

    return client.calls.begin(ask)


def get(client: Client, name: str) -> Piece:
    """A whole object. One request.

    Raises:
        StoreNotFoundError: There is none.
        StorageError: It could not be read.
    """
    return client.outcome("read", name, begin_get(client, name))


def begin_get(client: Client, name: str) -> Future[Piece]:
    """Asks for a whole object; `Client.outcome` waits for it. One request."""
    client.handle()  # in a forked child an error, before anything is waited for that its parent's thread would do
    return client.calls.begin(lambda: fetch(client, name), bulk=True)


def begin_get_first(client: Client, name: str, num_bytes: int) -> Future[Any]:
    """Asks for the first bytes of an object, one at least, and for nothing else about it, which costs a fifth less. One request."""
    obstore, handle = client.obstore, client.handle()
    return client.calls.begin(lambda: obstore.get_range_async(handle, name, start=0, length=num_bytes), bulk=True)


async def fetch(client: Client, name: str, range_bytes: tuple[int, int] | None = None) -> Piece:
    """Some bytes of an object, in one request; on the loop of `object_calls`.

    Args:
        range_bytes: Start, and end (not included); None for all.
    """
    if range_bytes is None:
        return await _fetch(client, client.handle(), name, None)
    num_bytes = range_bytes[1] - range_bytes[0]
    handle = client.handle(Resends.GOES_ON, num_bytes=num_bytes)
    return await client.line.carry(num_bytes, lambda: _fetch(client, handle, name, {"range": range_bytes}))


async def _fetch(client: Client, handle: Any, name: str, options: Mapping[str, Any] | None) -> Piece:
    result = await client.obstore.get_async(handle, name, options=options)
    client.calls.answered()
    data = memoryview(await result.bytes_async())
    return Piece(data, int(result.meta["size"]), result.meta["e_tag"])


def stream(client: Client, name: str, chunk_bytes: int) -> tuple[int, str | None, Iterator[memoryview]]:
    """A whole object: its size in bytes, its tag, and its bytes as they come. One request.

    Args:
        chunk_bytes: As many bytes come at once, at least.

    Raises:
        StoreNotFoundError: There is none.
        StorageError: It could not be read; the iterator raises that, too.
    """

    async def begin() -> tuple[Any, Any]:
        result = await client.obstore.get_async(client.handle(), name)
        return result.meta, result.stream(min_chunk_size=chunk_bytes)

    meta, chunks = client.call("read", name, begin)

    async def next_chunk() -> Any:
        return await anext(chunks, None)

    def iterate() -> Iterator[memoryview]:
        while (chunk := client.call("read", name, next_chunk, once=True, slow=True)) is not None:
            yield memoryview(chunk)

    return int(meta["size"]), meta["e_tag"], iterate()


def begin_put(
    client: Client,
    name: str,
    data: bytes,
    *,
    only_new: bool,
    action: str = "store",
    nonce: str | None = None,
    probe: bool = False,
) -> Callable[[], object]:
    """Begins to put a small object; what it returns waits until it is there. One request.

    Args:
        only_new: Whether it must not be there yet.
        nonce: What the write is called.
        probe: It is given up sooner.

    Returns:
        The wait. It raises StoreExistsError where something is there, which may be ours: sent again for want of an answer, it meets itself.
        And StorageError where it failed, or its answer was lost.
    """
    obstore, handle = client.obstore, client.handle(_resends(probe))
    attributes = {NONCE: nonce} if nonce is not None else None
    mode = "create" if only_new else "overwrite"

    def send_by(handle: Any) -> Any:
        return obstore.put_async(handle, name, data, attributes=attributes, mode=mode, use_multipart=False)

    def send() -> Any:
        if len(data) <= SMALL_BYTES:  # another layer would cost as much as the request
            return send_by(handle)
        return client.line.carry(len(data), lambda: send_by(client.handle(_resends(probe), num_bytes=len(data))))

    future = client.calls.begin(send, once=probe, bulk=nonce is not None)
    return lambda: client.outcome(action, name, future)


def _and_wait(begin: Callable[_P, Callable[[], object]]) -> Callable[_P, None]:
    def call(*args: _P.args, **kwargs: _P.kwargs) -> None:
        begin(*args, **kwargs)()

    return call


put = _and_wait(begin_put)
"""Puts a small object; raises what the wait of `begin_put` does."""


def put_parts(
    client: Client, name: str, parts: Iterable[bytes], size_bytes: int, *, nonce: str, part_bytes: int, at_once: int
) -> None:
    """Puts an object in parts, several at once. Two requests, and one a part.

    Ended by an error, of the network or of the reading, the library aborts the upload: no part stays behind. Only one that is
    broken off leaves them, for the bucket's rule for unfinished uploads.

    Args:
        size_bytes: Of all parts together.
        part_bytes: Of each part but the last.
        at_once: How many are on their way at most.

    Raises:
        StorageError: It failed, or its answer was lost.
    """
    obstore, handle = client.obstore, client.handle(Resends.ALWAYS, num_bytes=size_bytes)

    def send() -> Any:
        return obstore.put_async(
            handle,
            name,
            parts,
            attributes={NONCE: nonce},
            use_multipart=True,
            chunk_size=part_bytes,
            max_concurrency=client.calls.at_once(client.line.at_once(at_once)),
        )

    client.call("store", name, lambda: client.line.carry(size_bytes, send), once=True, slow=True)


def copy(client: Client, source: str, target: str, size_bytes: int, tag: str) -> bool:
    """Has the service copy an object. Three requests.

    The copy itself takes no condition. So a look comes before at either end, as for an upload in parts.

    Args:
        tag: Of the source: another object is not copied.

    Returns:
        Whether that was done; else nothing of it is there.

    Raises:
        StoreExistsError: Something lies at the target.
        StorageInterruptedError: It may have been done, or be done yet.
    """
    if size_bytes > _MOST_COPIED_BYTES:
        return False
    obstore, handle = client.obstore, client.handle()
    found = look(client, source)
    if found is None or found.e_tag != tag or found.size_bytes != size_bytes:
        return False
    if look(client, target) is not None:
        raise StoreExistsError(f"Cannot store {client.place.root}/{target}: something lies there")
    try:
        client.call("copy to", target, lambda: obstore.copy_async(handle, source, target), bulk=True)
    except StorageUnavailableError as error:
        # The answer may have been lost. A copy is known by its source's nonce.
        _log.debug("the copy to %s failed: %s", target, error)
        copied = look(client, target)
        return copied is not None and copied.nonce == found.nonce is not None and copied.size_bytes == size_bytes
    except StorageInterruptedError:
        raise
    except StorageError as error:
        _log.debug("the copy to %s failed: %s", target, error)
        return False
    # Azure may answer that a copy goes on still (202, pending), which the library does not tell from one that is done; within an
    # account, as here, they are done at once as a rule. An object that is pending has no bytes yet, so the listing before the
    # manifest refuses it by its size: the checkpoint fails, and none is committed with a file that is to come.
    return True


def delete(client: Client, name: str, *, action: str = "delete", probe: bool = False) -> None:
    """Removes an object; one that is gone already is no error. One request.

    Raises:
        StorageError: It is still there.
    """
    obstore, handle = client.obstore, client.handle(_resends(probe))
    try:
        client.call(action, name, lambda: obstore.delete_async(handle, name), once=probe)
    except StoreNotFoundError:
        return


def delete_all(client: Client, names: Sequence[str]) -> None:
    """Removes objects, `PAGE` at most; those that are gone already are no error. One request, where the service can.

    Raises:
        StorageError: Some are still there.
    """
    obstore, handle = client.obstore, client.handle(Resends.ALWAYS)
    try:
        client.call("delete", names[0], lambda: obstore.delete_async(handle, names), once=True, slow=True)
    except StoreNotFoundError:
        # Where deleting is one request an object, one that is gone already ends the rest.
        for name in names:
            delete(client, name)


def pages(
    client: Client, prefix: str, *, size: int = PAGE, action: str = "list", probe: bool = False
) -> Iterator[list[Listed]]:
    """Everything below a prefix, however deep, in the order of names. One request a page, made when it is come to.

    Raises:
        StorageError: It could not be listed.
    """
    stream: Any = None

    async def next_page() -> Any:
        nonlocal stream
        if stream is None:
            # On the loop, where alone it can be waited for.
            handle = client.handle(_of_many(client, probe))
            stream = client.obstore.list(handle, prefix or None, chunk_size=size)
        return await anext(stream, None)

    while (page := client.call(action, prefix, next_page, once=True)) is not None:
        yield [_listed(entry) for entry in page]


def level(client: Client, prefix: str) -> tuple[list[Listed], set[str]]:
    """The objects directly below a prefix, and the prefixes there. One request a thousand of them.

    Raises:
        StorageError: It could not be listed.
    """
    obstore, handle = client.obstore, client.handle(_of_many(client, probe=False))
    found: Mapping[str, Any] = client.call(
        "list", prefix, lambda: obstore.list_with_delimiter_async(handle, prefix or None), once=True
    )
    below = {str(each).rstrip("/") for each in found["common_prefixes"]}
    return [_listed(entry) for entry in found["objects"]], below


def _resends(probe: bool) -> Resends:
    return Resends.SOON_OVER if probe else Resends.NEVER


def _plain(e_tag: str | None) -> str | None:
    # Listings and answers of one server may differ in the quotation marks.
    return e_tag.strip('"') if e_tag is not None else None


def _of_many(client: Client, probe: bool) -> Resends:
    if client.place.service == "http":  # hardly any web server lists
        return Resends.NEVER
    return Resends.ALWAYS if client.calls.has_answered and not probe else Resends.SOON_OVER


def _listed(entry: Mapping[str, Any]) -> Listed:
    return Listed(str(entry["path"]), int(entry["size"]), entry["last_modified"].timestamp(), _plain(entry["e_tag"]))
