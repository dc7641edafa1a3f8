"""Joining XGBoost's communicator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xgboost import collective
from xgboost.core import XGBoostError
from xgboost.tracker import RabitTracker

from holdfast.collective import broadcast_from_rank_zero
from holdfast.errors import WorkerStartError

if TYPE_CHECKING:
    from holdfast.worker.context import TrainContext
    from holdfast.xgboost.config import XGBoostConfig

# Rank 0's, which tells the others of each other; it ends with that process.
_tracker: Any = None


def join(config: XGBoostConfig, context: TrainContext) -> None:
    """Makes this worker a member of the group, under its own rank, until its process ends.

    Nobody leaves it before: to leave is to tell the tracker, and where rank 0 has returned first, there is none.

    Raises:
        WorkerStartError: The group did not form in time.
    """
    global _tracker
    rank, world_size = context.get_world_rank(), context.get_world_size()
    if world_size == 1:
        return
    address: dict[str, Any] = {}
    if rank == 0:
        # It takes a port of the system's choice and listens there before it tells which: nobody can come in between.
        _tracker = RabitTracker(n_workers=world_size, host_ip="127.0.0.1", sortby="task")
        _tracker.start()
        address = _tracker.worker_args()
    address = broadcast_from_rank_zero(address)
    try:
        # The tracker gives ranks in the order of these texts.
        collective.init(**address, dmlc_task_id=f"{rank:08}", dmlc_timeout=config.timeout_s)
    except XGBoostError as error:
        raise WorkerStartError(
            f"rank {rank} of {world_size} could not join XGBoost's communicator at {address} "
            f"(XGBoostConfig.timeout_s={config.timeout_s}): {error}"
        ) from error
