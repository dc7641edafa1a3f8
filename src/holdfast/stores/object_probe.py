"""Finds out, at the start of a run, whether a bucket can be used, and whether it keeps to conditions."""

from __future__ import annotations

import logging
import secrets

from holdfast.errors import StorageError, StoreExistsError
from holdfast.stores.object_client import Client
from holdfast.stores.object_requests import delete, look, pages, put

_log = logging.getLogger("holdfast")


def probe(client: Client, name: str, prefix: str) -> None:
    """Writes, lists and deletes an object of a few bytes, and notes in the client whether creation is exclusive.

    Args:
        name: The object's; nobody else uses it. A death in here leaves it.
        prefix: What is listed.

    Raises:
        StorageAccessError: There is no such bucket, a right is missing, or the credentials or the region are wrong.
        StorageUnavailableError: The endpoint cannot be reached.
    """
    nonce = secrets.token_hex(16)
    is_exclusive = _create(client, name, nonce)
    found = look(client, name, probe=True)
    client.keeps_nonces = found is not None and found.nonce == nonce
    next(pages(client, prefix, size=1, probe=True), None)
    delete(client, name, action="delete from", probe=True)
    if client.exclusive and not is_exclusive:
        _log.warning(
            "%s overwrites objects that were to be created only if they are not there (it ignores If-None-Match): should "
            "two drivers start one run in the same instant, both may go on; everything else is as safe as elsewhere",
            client.place.root,
        )
    client.exclusive = is_exclusive


def _create(client: Client, name: str, nonce: str) -> bool:
    """Creates the object, twice if it can be; whether the second time was refused."""
    try:
        put(client, name, b"holdfast", only_new=True, action="write to", nonce=nonce, probe=True)
    except StoreExistsError:
        return True  # it was sent again for want of an answer, and has met itself
    except StorageError as error:
        if type(error) is not StorageError:
            raise
        # A server that refuses conditions instead of ignoring them may still take a plain write.
        put(client, name, b"holdfast", only_new=False, action="write to", nonce=nonce, probe=True)
        return False
    try:
        put(client, name, b"again", only_new=True, action="write to", nonce=nonce, probe=True)
    except StoreExistsError:
        return True
    return False
