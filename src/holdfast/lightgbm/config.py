"""What `LightGBMTrainer` prepares in its workers."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.checks import check_package
from holdfast.lightgbm import network
from holdfast.worker.backend import BackendConfig

if TYPE_CHECKING:
    from holdfast.worker.context import TrainContext

check_installed = functools.partial(check_package, "lightgbm", "LightGBM")


@dataclass(frozen=True)
class LightGBMConfig(BackendConfig):
    """What `get_network_params` needs to know."""

    def preload(self) -> tuple[str, ...]:
        """What LightGBM imports, which is most of its time; itself it must read each worker's own number of threads."""
        return ("numpy", "scipy.sparse", "pandas", "sklearn")

    def on_start(self, context: TrainContext) -> None:
        """Says how many workers there are."""
        check_installed()
        network.prepare(context)

    def on_end(self, context: TrainContext) -> None:
        """Frees the ports."""
        network.forget()
