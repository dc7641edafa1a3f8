"""The place of a callback among a trainer's callbacks."""

from __future__ import annotations

from typing import Any

from holdfast.lightning.packages import package_of


def put_last(callback: Any, trainer: Any) -> None:
    """Has a callback called after all others in every hook, so that a checkpoint has their states as they are by then.

    At the end of an epoch Lightning calls those that monitor a metric after all others, and after the model: `EarlyStopping`, and what derives
    from `Checkpoint`. So the callback does, from now on. It does not from the start, because a trainer with
    `enable_checkpointing=False` takes no such callback, and one with True would make no `ModelCheckpoint` beside it.
    """
    monitor, kind = package_of(trainer).callbacks.Checkpoint, type(callback)
    if not isinstance(callback, monitor):
        names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
        callback.__class__ = type(kind.__name__, (kind, monitor), names)
    # A new list: Lightning is going through the old one.
    trainer.callbacks = [*(each for each in trainer.callbacks if each is not callback), callback]
