"""How workers find each other for XGBoost's collectives."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from holdfast.checks import check_choice, check_int, check_package
from holdfast.worker.backend import BackendConfig

if TYPE_CHECKING:
    from holdfast.worker.context import TrainContext

check_installed = functools.partial(check_package, "xgboost", "XGBoost")


@dataclass(frozen=True)
class XGBoostConfig(BackendConfig):
    """XGBoost's communicator, which all workers have joined when the training function begins; none where there is only one.

    Attributes:
        xgboost_communicator: `rabit`, the only one.
        timeout_s: Seconds that forming the group, or a collective in it, may take; a worker that loads its data more slowly than the
            others keeps them waiting in their first.
    """

    xgboost_communicator: Literal["rabit"] = "rabit"
    timeout_s: int = 1800

    def __post_init__(self) -> None:
        check_choice("XGBoostConfig.xgboost_communicator", self.xgboost_communicator, ("rabit",))
        check_int("XGBoostConfig.timeout_s", self.timeout_s, 1, "XGBoost counts whole seconds")

    def preload(self) -> tuple[str, ...]:
        """What XGBoost imports, which is most of its time; itself it must read each worker's own number of threads."""
        return ("numpy", "scipy.sparse", "pandas", "sklearn")

    def on_start(self, context: TrainContext) -> None:
        """Joins the communicator.

        Raises:
            WorkerStartError: It did not form in time.
        """
        check_installed()
        from holdfast.xgboost import group

        group.join(self, context)
