"""What lies under an object's name, and whose write put it there."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.errors import StoreNotFoundError
from holdfast.stores.object_client import Client

# A name that all three services take for user metadata (Azure's must be an identifier).
NONCE = "holdfastwrite"


@dataclass(frozen=True)
class Found:
    """An object that is there.

    Attributes:
        nonce: What the write that made it was called by its writer, or None where it or the server did not say.
    """

    size_bytes: int
    nonce: str | None


def look(client: Client, name: str) -> Found | None:
    """What lies at a name; None for nothing. One request.

    Raises:
        StorageError: The store did not say.
    """
    try:
        with client.telling("look for", name):
            result = client.obstore.get(client.handle(), name, options={"head": True})
            attributes = {str(each).lower(): str(value) for each, value in result.attributes.items()}
            return Found(int(result.meta["size"]), attributes.get(NONCE))
    except StoreNotFoundError:
        return None
