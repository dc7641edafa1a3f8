"""Going on with an epoch's data where they were left."""

from __future__ import annotations

import logging
import warnings
from typing import Any

_LOG = logging.getLogger("holdfast")


def resume_data(trainer: Any) -> None:
    """Has the first epoch of a resumed training see the data that it would have seen.

    Lightning leaves two things undone for loaders without `state_dict()`. It has begun to read them before it tells their samplers
    the epoch, so with `num_workers` above 0 the first batches are in the order of epoch 0. And in the middle of an epoch it goes
    on with the number of the batch, but with the data of the first: they would be trained on twice, and the last not at
    all. So the loaders are begun again, and the batches that were trained on are drawn and dropped.

    To be called in `on_train_start`. It uses what Lightning (2.5 and 2.6) keeps to itself: the loop's fetcher of batches.

    Args:
        trainer: A trainer that has loaded a checkpoint, or not.
    """
    loop = trainer.fit_loop
    fetcher = loop._data_fetcher
    loaders = fetcher.combined_loader.flattened
    # After an epoch's end `restarting` is false again by now; releases before 2.6 have that alone.
    resumed = loop.restarting or getattr(loop, "is_resuming", False)
    # What can say where it was goes on there by itself.
    if not resumed or any(hasattr(loader, "load_state_dict") for loader in loaders):
        return
    for loader in loaders:
        for source in (loader, getattr(loader, "batch_sampler", None)):
            sampler: Any = getattr(source, "sampler", None)
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(loop.epoch_progress.current.processed)
    iter(fetcher)
    progress = loop.epoch_loop.batch_progress
    # What `processed` counts has been trained on; a batch that an exception left half done is trained on again.
    count = progress.current.processed
    # A training step that draws batches itself (`dataloader_iter`) has a fetcher without `batches`.
    if progress.is_last_batch or not 0 < count < trainer.num_training_batches or not hasattr(fetcher, "batches"):
        return
    _LOG.info("the epoch goes on after its batch %d: those before are read and dropped", count)
    for _ in range(count):
        next(fetcher, None)
    fetcher.fetched -= count  # Lightning adds them itself
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
