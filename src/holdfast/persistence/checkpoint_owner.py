"""What a checkpoint on its way needs of the run that it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from holdfast.records import CommittedCheckpoint, Manifest
from holdfast.stores.base import Store

if TYPE_CHECKING:
    from holdfast.persistence.kept import Keeper
    from holdfast.persistence.predecessor import Predecessor, Traces
    from holdfast.persistence.upload import Uploader


class Owner(Protocol):
    """What a checkpoint on its way needs of the run that it belongs to."""

    store: Store
    epoch: int
    strict: bool
    predecessor: Predecessor | None
    keeper: Keeper

    def uploader(self) -> Uploader:
        """The threads that store files."""

    def claim(self, name: str) -> None:
        """Frees the name for files that are about to come, or raises `CheckpointExistsError`."""

    def check_lease(self) -> None:
        """Raises `RunInUseError` where another driver has taken the run over."""

    def remember_litter(self, key: str) -> None:
        """Something could not be removed now; it is tried again when the run is closed."""

    def expect_validation(self, checkpoint: CommittedCheckpoint) -> None:
        """The checkpoint is about to exist, and to wait for its validation."""

    def given_up(self, name: str) -> None:
        """The checkpoint will not exist, and nothing of it is on its way any more: its name is free."""

    def committed(
        self,
        checkpoint: CommittedCheckpoint,
        manifest: Manifest,
        files: Sequence[str] | None,
        traces: Traces | None,
        mark: str | None,
    ) -> None:
        """The checkpoint exists.

        Args:
            files: They are to be flushed behind; None: read them then.
            traces: What storing it has left; None where others did.
            mark: The key of what said that it was on its way; nobody needs it any more.
        """
