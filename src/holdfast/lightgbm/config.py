"""What `LightGBMTrainer` prepares in its workers."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.lightgbm import network
from holdfast.worker.backend import BackendConfig

if TYPE_CHECKING:
    from holdfast.worker.context import TrainContext


def check_installed() -> None:
    """Says what to do where LightGBM is missing.

    Raises:
        ImportError: It is.
    """
    if importlib.util.find_spec("lightgbm") is None:
        raise ImportError(
            "holdfast.lightgbm needs LightGBM. Install it with: pip install holdfast[lightgbm]", name="lightgbm"
        )


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
