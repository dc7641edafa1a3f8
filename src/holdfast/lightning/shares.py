"""How an epoch's data are shared out to the workers, and what of it is done where they are shared out anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What a checkpoint has it under, beside Lightning's own keys.
SHARES = "holdfast_shares"


def shares_of(trainer: Any) -> dict[str, Any]:
    """To how many workers, in batches of what size, and how the data are shared out now.

    Returns:
        `world_size`; `batch_sizes`, one a loader, None where it does not say; `are_dealt`: all have a `DistributedSampler`, which deals one
        order out to all in turn, the same one for an epoch whenever it is asked.
    """
    from torch.utils.data import DistributedSampler

    loader = trainer.fit_loop._combined_loader
    loaders = [] if loader is None else loader.flattened
    return {
        "world_size": trainer.world_size,
        "batch_sizes": [getattr(each, "batch_size", None) for each in loaders],
        # By its exact type: one that derives from it may share out otherwise, as by length or in one piece each, and one that deals
        # out what another sampler draws (Lightning's wrapper) has that one's order, which may be new each time.
        "are_dealt": all(type(getattr(each, "sampler", None)) is DistributedSampler for each in loaders),
    }


def batches_done(count: int, before: Mapping[str, Any], now: Mapping[str, Any]) -> int:
    """How many of its batches each worker has behind it, after so many that were shared out otherwise.

    What workers have had of one order that is dealt out is its beginning, whatever their number and their batches, and the next may go on
    behind it. Rounded down: a few items are seen twice, and none is left out.

    Returns:
        The number; 0 where nothing says that the order is the same one, so that the epoch is begun anew.
    """
    old, new = before["batch_sizes"], now["batch_sizes"]
    if not (before["are_dealt"] and now["are_dealt"]) or None in [*old, *new] or len(old) != len(new):
        return 0
    # Of several loaders the one that has come least far.
    sizes = zip(old, new, strict=True)
    return min((count * before["world_size"] * one // (now["world_size"] * other) for one, other in sizes), default=0)
