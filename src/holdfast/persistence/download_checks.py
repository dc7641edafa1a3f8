"""What is said of a file that is not what was reported."""

from __future__ import annotations

from holdfast.errors import DamagedCheckpointError
from holdfast.persistence.digest import FileHasher, is_known
from holdfast.records import StoredFile
from holdfast.stores.base import Store


def compare(store: Store, file: StoredFile, hasher: FileHasher) -> None:
    """Compares what came with what was reported.

    Raises:
        DamagedCheckpointError: It is something else.
    """
    if file.digest is not None and is_known(file.digest) and hasher.text() != file.digest:
        raise damaged(store, file, f"its content changed: {hasher.text()} instead of {file.digest}")


def damaged(store: Store, file: StoredFile, reason: str) -> DamagedCheckpointError:
    """The error for a file that cannot be given as it was reported."""
    return DamagedCheckpointError(
        f"The checkpoint {store.url!r} is not what was reported: {file.path}: {reason}; use an older one"
    )
