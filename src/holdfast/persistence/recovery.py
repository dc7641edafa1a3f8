"""Which checkpoint to go on from: the newest whose bytes are those that were reported."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

from holdfast.errors import DamagedCheckpointError, FormatError
from holdfast.persistence.manifest import read_manifest
from holdfast.records import CommittedCheckpoint, Manifest
from holdfast.stores.base import Store

_log = logging.getLogger("holdfast")

Fingerprint = dict[str, os.stat_result]


@dataclass(frozen=True)
class Finding:
    """What looking at a checkpoint brought.

    Attributes:
        damage: What is wrong with it, or None.
        gone: Nothing of it is there any more.
        manifest: What it consists of, where it could be read.
        compared: Its digests were compared just now.
        fingerprint: What stat said of its files before that.
    """

    damage: str | None = None
    gone: bool = False
    manifest: Manifest | None = None
    compared: bool = False
    fingerprint: Fingerprint | None = None

    @property
    def usable(self) -> bool:
        """Whether a job can go on from it."""
        return self.damage is None and not self.gone


class Fingerprints:
    """What stat said of the files of our own newest commits, so that a restart need not read their bytes again.

    Kept in memory only: after a loss of power stat proves nothing. Where there is no stat, the store's own times tell: the
    manifest is written last, so whatever was written to afterwards is younger. Such a time may be a whole second, and then says nothing
    of what was written within it: see `doubt`.
    """

    _KEPT = 2

    def __init__(self, store: Store) -> None:
        self._store = store
        self._taken: dict[str, tuple[str, Fingerprint | None]] = {}
        self._compared: tuple[str, str] | None = None

    def take(self, manifest: Manifest) -> Fingerprint | None:
        """Remembers a checkpoint that was committed this instant; gives what stat says, where there is a stat."""
        found = self.look(manifest)
        self.remember(manifest, found)
        return found

    def look(self, manifest: Manifest) -> Fingerprint | None:
        """What stat says of a checkpoint's files, where there is a stat."""
        from holdfast.persistence.verify import fingerprint

        return fingerprint(self._store, manifest.name, manifest)

    def remember(self, manifest: Manifest, found: Fingerprint | None) -> None:
        """What was looked up before a checkpoint's digests proved to be right."""
        self._taken[manifest.name] = (manifest.id, found)
        while len(self._taken) > self._KEPT:
            del self._taken[next(iter(self._taken))]

    def match(self, manifest: Manifest, found: Fingerprint | None) -> bool:
        """Whether nothing had touched the files when they were looked up just now."""
        from holdfast.persistence.verify import all_untouched, is_older_than_manifest

        checkpoint_id, taken = self._taken.get(manifest.name, ("", None))
        if checkpoint_id != manifest.id:
            return False
        if taken is None:
            return is_older_than_manifest(self._store, manifest.name)
        return all_untouched(taken, found)

    def forget(self) -> None:
        """Somebody has found a checkpoint damaged, whatever stat and times say: digests are compared again."""
        self._taken.clear()

    def doubt(self, name: str) -> None:
        """Whoever began with this checkpoint failed, perhaps by its bytes: where only times speak for them, they are compared again.

        Not if this driver has done so before: what was written after that is younger than the manifest by any clock.
        """
        checkpoint_id, taken = self._taken.get(name, ("", None))
        if taken is None and checkpoint_id and self._compared != (name, checkpoint_id):
            del self._taken[name]

    def note_compared(self, manifest: Manifest) -> None:
        """The digests of a checkpoint have just proved to be right."""
        self._compared = manifest.name, manifest.id


def examine(
    store: Store,
    checkpoint: CommittedCheckpoint,
    fingerprints: Fingerprints,
    fetch: Callable[[CommittedCheckpoint, Manifest], bool],
) -> Finding:
    """Verifies a checkpoint: sizes and kinds always, digests unless stat proves that nothing was touched.

    Args:
        store: Rooted at the run's directory.
        fetch: Fetches a remote checkpoint, which compares the digests on the way, to where the workers will find it; False where it
            has compared nothing.

    Raises:
        StorageError: The store failed, which says nothing of the checkpoint.
    """
    from holdfast.persistence.verify import find_damage

    child = store.child(checkpoint.name)
    try:
        manifest = read_manifest(child)
    except FormatError as error:
        return Finding(damage=str(error))
    if manifest is None:
        return Finding(gone=True)
    if manifest.id != checkpoint.id:
        return Finding(damage=f"{child.url} is another checkpoint than the one that was committed there")
    damages = find_damage(store, checkpoint.name, manifest, digests=False)
    # Looked up first: what is written to a file while it is compared, or after, is found by the next look.
    looked = fingerprints.look(manifest) if not damages else None
    compared = not damages and not fingerprints.match(manifest, looked)
    if compared:
        try:
            # What is read to be compared need not be read again to be restored.
            if not fetch(checkpoint, manifest):
                damages = find_damage(store, checkpoint.name, manifest)
        except DamagedCheckpointError as error:
            return Finding(damage=str(error))
    if not damages:
        if compared:
            fingerprints.note_compared(manifest)
        return Finding(manifest=manifest, compared=compared, fingerprint=looked)
    first = f"{damages[0].path!r}: {damages[0].reason}"
    return Finding(damage=first if len(damages) == 1 else f"{first}, and {len(damages) - 1} more")
