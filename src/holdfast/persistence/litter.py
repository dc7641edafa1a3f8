"""What could not be removed when its time had come."""

from __future__ import annotations

import logging

from holdfast.errors import StorageError
from holdfast.stores.base import Store

_LOG = logging.getLogger("holdfast")


class Litter:
    """Keys below a run's directory that are in nobody's use any more.

    Args:
        run: Rooted at the run's directory.
    """

    def __init__(self, run: Store) -> None:
        self._run = run
        self._keys: set[str] = set()

    def add(self, key: str) -> None:
        """It is tried again when its place is needed, and at the end."""
        self._keys.add(key)

    def make_way(self, key: str) -> bool:
        """Removes what lies at a place that is needed; False where that is not known to be litter.

        Raises:
            StorageError: It cannot be removed now either.
        """
        if key not in self._keys:
            return False
        self._run.delete_tree(key)
        self._keys.discard(key)
        return True

    def remove(self, key: str) -> None:
        """Removes something; where that fails, it only says so."""
        try:
            self._run.delete_tree(key)
        except StorageError as error:
            _LOG.warning(
                "%s/%s could not be removed (%s); the next start of the run tries again", self._run.url, key, error
            )

    def remove_all(self) -> None:
        """Tries once more what is left."""
        for key in self._keys:
            self.remove(key)
