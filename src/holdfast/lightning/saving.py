"""One checkpoint of a trainer, whichever of its ranks writes how much of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from holdfast.checkpoint import Checkpoint
from holdfast.collective import broadcast_from_rank_zero
from holdfast.lightning.packages import package_of
from holdfast.worker.context import get_context
from holdfast.worker.staging_directory import staging_directory


@contextlib.contextmanager
def saved(trainer: Any, name: str) -> Iterator[Checkpoint | None]:
    """Saves what `Trainer.save_checkpoint` saves, on every rank, for a report inside the block.

    All ranks write into one directory: with DDP the lowest writes a file and the others nothing, with FSDP's sharded state and with
    DeepSpeed each writes its shards. So nothing is there twice, and one rank's report hands over all of it.

    Args:
        trainer: The trainer.
        name: The file's name, or the directory's where the strategy makes one.

    Returns:
        The checkpoint on rank 0, None elsewhere.
    """
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(staging_directory()) if get_context().get_world_rank() == 0 else None
        directory: Any = broadcast_from_rank_zero(own)
        with _written_straight(trainer):
            trainer.save_checkpoint(os.path.join(directory, name), weights_only=False)
        # It has waited for every rank: all shards are there.
        yield Checkpoint.from_directory(own) if own is not None else None


@contextlib.contextmanager
def _written_straight(trainer: Any) -> Iterator[None]:
    """The file is written where it belongs, before the call returns."""
    plugins = package_of(trainer).plugins
    strategy = trainer.strategy
    given = chosen = strategy.checkpoint_io
    # It would return before there is a file. An asynchronous report waits for no upload either.
    while isinstance(chosen, plugins.AsyncCheckpointIO):
        chosen = chosen.checkpoint_io
    # It makes the file in memory, and once more in the directory for temporary files.
    if type(chosen) is plugins.TorchCheckpointIO:
        chosen = _StraightIO()
    strategy.checkpoint_io = chosen
    try:
        yield
    finally:
        strategy.checkpoint_io = given


class _StraightIO:
    """What a strategy calls to write a file: `torch.save`, and nothing else. What is not reported nobody reads."""

    def save_checkpoint(self, checkpoint: Any, path: str | os.PathLike[str], storage_options: Any = None) -> None:
        """Writes the file."""
        import torch

        torch.save(checkpoint, path)
