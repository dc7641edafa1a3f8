"""What workers and validations print, kept in the run where the store can append."""

from __future__ import annotations

import logging

from holdfast.errors import StorageError
from holdfast.stores.base import Store

_LOG = logging.getLogger("holdfast")


def append_text(store: Store, key: str, text: str) -> None:
    """Adds a text to a log; one that cannot be written is told of and fails nothing.

    Args:
        store: Rooted at the run's directory.
    """
    if not store.capabilities.append:
        return
    try:
        log = store.open_append(key)
        try:
            log.write(text.encode("utf-8", "surrogateescape"))
        finally:
            log.close()
    except StorageError as error:
        _LOG.warning("the log %s could not be written: %s", key, error)
