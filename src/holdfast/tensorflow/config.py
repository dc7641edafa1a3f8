"""How workers find each other for TensorFlow's strategies."""

from __future__ import annotations

import functools
import json
import logging
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.checks import check_package
from holdfast.collective import broadcast_from_rank_zero
from holdfast.engines.local.engine import reserve_port
from holdfast.worker.backend import BackendConfig

if TYPE_CHECKING:
    from holdfast.worker.context import TrainContext

LEGACY_KERAS = "TF_USE_LEGACY_KERAS"
check_installed = functools.partial(check_package, "tensorflow", "TensorFlow")
_LOG = logging.getLogger("holdfast.tensorflow")

# Rank 0 holds every rank's port until its process ends: TensorFlow, which allows the reuse of an address, can still bind it.
_holders: list[socket.socket] = []


def uses_legacy_keras() -> bool:
    """Whether `tf.keras` is tf_keras, as TensorFlow reads it."""
    return os.environ.get(LEGACY_KERAS) in ("true", "True", "1")


@dataclass(frozen=True)
class TensorflowConfig(BackendConfig):
    """Sets TF_CONFIG, by which `tf.distribute.MultiWorkerMirroredStrategy` finds all workers; also where there is only one.

    Workers import TensorFlow themselves: at its import it reads what the run's environment says (which Keras, on what, how much is logged), and
    it does not promise to survive a fork.
    """

    def preload(self) -> tuple[str, ...]:
        """What TensorFlow and Keras import, and is no part of them."""
        return ("numpy", "h5py")

    def on_start(self, context: TrainContext) -> None:
        """Sets the variable."""
        check_installed()
        rank, world_size = context.get_world_rank(), context.get_world_size()
        ports: list[int] = []
        if rank == 0:
            _holders.extend(reserve_port() for _ in range(world_size))
            ports = [holder.getsockname()[1] for holder in _holders]
        if world_size > 1:
            ports = broadcast_from_rank_zero(ports)
        os.environ["TF_CONFIG"] = json.dumps(
            {
                "cluster": {"worker": [f"127.0.0.1:{port}" for port in ports]},
                "task": {"type": "worker", "index": rank},
            }
        )
        if rank == 0 and world_size > 1 and not uses_legacy_keras() and LEGACY_KERAS not in os.environ:
            _LOG.warning(
                "Keras 3's model.fit cannot train under MultiWorkerMirroredStrategy "
                "(https://github.com/keras-team/keras/issues/20585). Install what TensorFlow then takes for tf.keras: pip install tf_keras; "
                "or set %s=0 if the function has a training loop of its own",
                LEGACY_KERAS,
            )

    def on_end(self, context: TrainContext) -> None:
        """Removes it from what may be the user's own program."""
        os.environ.pop("TF_CONFIG", None)
        while _holders:
            _holders.pop().close()
