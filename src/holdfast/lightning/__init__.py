"""PyTorch Lightning: a callback that reports, and strategies that know the workers.

They work with `lightning` and with `pytorch_lightning`, whichever the user's trainer is of. Importing this package imports
neither; what is first made of it does.
"""

from __future__ import annotations

from typing import Any

from holdfast.lightning.packages import ByPackage, environment_class, report_class, strategy_class
from holdfast.lightning.reporting import ReportHooks
from holdfast.lightning.strategies import DeepSpeedOnWorkers, OnWorkers, ShardedOnWorkers, WorkerEnvironment
from holdfast.lightning.trainer import prepare_trainer as prepare_trainer

__all__ = [
    "RayDDPStrategy",
    "RayDeepSpeedStrategy",
    "RayFSDPStrategy",
    "RayLightningEnvironment",
    "RayTrainReportCallback",
    "ReportCallback",
    "prepare_trainer",
]

# To a type checker they are classes that it knows nothing of: their bases are, too.
RayTrainReportCallback: Any = ByPackage("RayTrainReportCallback", report_class, ReportHooks)
ReportCallback: Any = RayTrainReportCallback
RayDDPStrategy: Any = ByPackage("RayDDPStrategy", strategy_class("DDPStrategy"), OnWorkers)
RayFSDPStrategy: Any = ByPackage("RayFSDPStrategy", strategy_class("FSDPStrategy"), ShardedOnWorkers)
RayDeepSpeedStrategy: Any = ByPackage("RayDeepSpeedStrategy", strategy_class("DeepSpeedStrategy"), DeepSpeedOnWorkers)
RayLightningEnvironment: Any = ByPackage("RayLightningEnvironment", environment_class, WorkerEnvironment)
