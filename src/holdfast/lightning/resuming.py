"""Going on in the middle of an epoch with a data loader that cannot say where it was."""

from __future__ import annotations

import logging
import warnings
from typing import Any

_LOG = logging.getLogger("holdfast")


def skip_seen_batches(trainer: Any) -> None:
    """Draws the batches that the interrupted epoch has trained on, and drops them.

    Lightning goes on with the number of the batch, but reads a loader without `state_dict()` from its beginning: the first data
    of the epoch would be trained on twice and the last not at all. To be called in `on_train_start`.

    Args:
        trainer: A trainer that has loaded a checkpoint, or not.
    """
    loop = trainer.fit_loop
    progress = loop.epoch_loop.batch_progress
    # What `processed` counts has been trained on; a batch that an exception left half done is trained on again.
    count = progress.current.processed
    if not loop.restarting or progress.is_last_batch or not 0 < count < trainer.num_training_batches:
        return
    fetcher = loop._data_fetcher
    loaders = fetcher.combined_loader.flattened
    # One that a training step draws from itself (`dataloader_iter`) has no `batches`.
    if any(hasattr(loader, "load_state_dict") for loader in loaders) or not hasattr(fetcher, "batches"):
        return
    _LOG.info("the epoch goes on after its batch %d: those before are read and dropped", count)
    for _ in range(count):
        if next(fetcher, None) is None:
            break
    # Lightning adds them itself.
    fetcher.fetched -= count
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
