"""Going on with an epoch's data where they were left."""

from __future__ import annotations

import logging
import os
import pickle
import warnings
from collections.abc import Mapping
from typing import Any

from holdfast.errors import ConfigurationError
from holdfast.lightning.shares import batches_done, shares_of

_LOG = logging.getLogger("holdfast")


def resume_data(trainer: Any, before: Mapping[str, Any] | None) -> None:
    """Has the first epoch of a resumed training see the data that it would have seen.

    Lightning leaves things undone for loaders without `state_dict()`. It has begun to read them before it tells their samplers the epoch,
    so with `num_workers` above 0 the first batches are in the order of epoch 0. And in the middle of an epoch it goes on with the number
    of the batch, but with the data of the first: they would be trained on twice, and the last not at all. So the loaders are begun
    again, and the batches that were trained on are drawn and dropped. How many those are depends on how the data are shared out.

    To be called in `on_train_start`. It uses what Lightning keeps to itself: the loop's fetcher of batches, and its count of them.

    Args:
        trainer: A trainer that has loaded a checkpoint, or not.
        before: How the data were shared out when the checkpoint was saved; None where it does not say.
    """
    loop = trainer.fit_loop
    # After an epoch's end `restarting` is false again by now.
    if not (loop.restarting or loop.is_resuming):
        return
    if loop.restarted_on_epoch_end:
        _settle_epoch(loop)
    fetcher = loop._data_fetcher
    loaders = fetcher.combined_loader.flattened
    progress = loop.epoch_loop.batch_progress
    now = shares_of(trainer)
    is_within = not progress.is_last_batch and progress.current.processed > 0
    is_changed = is_within and before is not None and before != now
    # What can say where it was goes on there by itself.
    if any(hasattr(loader, "load_state_dict") for loader in loaders):
        if is_changed:
            _warn(trainer, before, now, "the loaders go on by their own state, which is that of the workers before")
        return
    for loader in loaders:
        for source in (loader, getattr(loader, "batch_sampler", None)):
            sampler: Any = getattr(source, "sampler", None)
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(loop.epoch_progress.current.processed)
    iter(fetcher)
    if is_changed:
        _share_anew(trainer, before, now)
    # What `processed` counts has been trained on; a batch that an exception left half done is trained on again.
    count = progress.current.processed
    # A training step that draws batches itself (`dataloader_iter`) has a fetcher without `batches`.
    if not is_within or not 0 < count < trainer.num_training_batches or not hasattr(fetcher, "batches"):
        return
    _LOG.info("the epoch goes on after its batch %d: those before are read and dropped", count)
    for _ in range(count):
        next(fetcher, None)
    fetcher.fetched -= count  # Lightning adds them itself
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")


_REFUSED = (
    "torch does not load the checkpoint, because it holds objects of other classes than torch's, as save_hyperparameters() adds them; "
    "pass weights_only=False to trainer.fit(..., ckpt_path=...), or call torch.serialization.add_safe_globals([THE_CLASS]) "
    "before it, as with FSDP, where Lightning does not hand weights_only on"
)


def explain(exception: BaseException) -> None:
    """Raises an error with a remedy in the place of torch's, where it has refused a checkpoint for a class in it.

    Raises:
        ConfigurationError: It has.
    """
    if _is_refusal(exception):
        raise ConfigurationError(_REFUSED) from exception


def warn_if_refused(path: str) -> None:
    """Says at the first checkpoint, and not after the crash, that torch will refuse to load it unless it is told to trust it.

    Args:
        path: What was saved. A directory is not looked at.
    """
    import torch

    if not os.path.isfile(path):
        return
    try:
        # Mapped: of a large file little is read.
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        if _is_refusal(error):
            _LOG.warning("to resume: %s", _REFUSED)
    except Exception as error:  # noqa: BLE001 - a look ahead: whatever else is wrong is told where it is loaded
        _LOG.debug("%s could not be looked at: %s", path, error)


def _is_refusal(error: BaseException) -> bool:
    return isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error)


def _settle_epoch(loop: Any) -> None:
    """Lets an epoch that is over be over, and one that was stopped within go on.

    With `max_steps` Lightning takes both for something between: it would end the first once more, and where nothing is validated train on
    its first batch before that; of the second it would count one epoch too many.
    """
    if not loop.epoch_loop.batch_progress.is_last_batch:
        loop.epoch_progress.current.processed -= 1
        loop.epoch_progress.total.processed -= 1
        return
    loop.epoch_progress.increment_completed()
    loop._restarting = False  # by its setter it would stay as it is
    loop.epoch_loop.restarting = False
    loop.reset_restart_stage()
    loop.epoch_loop.reset_restart_stage()


def _share_anew(trainer: Any, before: Any, now: Mapping[str, Any]) -> None:
    """Counts the batches that were trained on in those of now."""
    loop = trainer.fit_loop
    current = loop.epoch_loop.batch_progress.current
    done = batches_done(current.processed, before, now)
    # At least one is left: an epoch without a batch has no end.
    change = max(0, min(done, trainer.num_training_batches - 1)) - current.processed
    # Each: one of them is behind the others where the checkpoint was saved before the end of its batch, which Lightning knows.
    for name in ("ready", "started", "processed", "completed"):
        setattr(current, name, getattr(current, name) + change)
    if done == 0:
        _warn(trainer, before, now, "so the epoch begins anew, and items are trained on twice")
    else:
        _warn(trainer, before, now, f"so the epoch goes on after {done} batches of now, those that hold the same items")


def _warn(trainer: Any, before: Any, now: Mapping[str, Any], consequence: str) -> None:
    if trainer.is_global_zero:
        _LOG.warning(
            "The checkpoint was saved in the middle of an epoch at %s; now it is %s: %s",
            _described(before),
            _described(now),
            consequence,
        )


def _described(shares: Mapping[str, Any]) -> str:
    sizes = ", ".join("unknown size" if size is None else str(size) for size in shares["batch_sizes"])
    return f"a world size of {shares['world_size']} with batches of {sizes}"
