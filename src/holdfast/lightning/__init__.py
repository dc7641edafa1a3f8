"""PyTorch Lightning: a callback that reports, and strategies that know the workers.

They work with `lightning` and with `pytorch_lightning`, whichever the user's trainer is of. Importing this package imports
neither; what is first made of it does.
"""

from __future__ import annotations

from typing import Any

from holdfast.lightning import reporting, strategies
from holdfast.lightning.packages import ByPackage, environment_class, report_class, strategy_class
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
RayTrainReportCallback: Any = ByPackage("RayTrainReportCallback", report_class, reporting.RayTrainReportCallback)
ReportCallback: Any = RayTrainReportCallback
RayDDPStrategy: Any = ByPackage("RayDDPStrategy", strategy_class("DDPStrategy"), strategies.RayDDPStrategy)
RayFSDPStrategy: Any = ByPackage("RayFSDPStrategy", strategy_class("FSDPStrategy"), strategies.RayFSDPStrategy)
RayDeepSpeedStrategy: Any = ByPackage(
    "RayDeepSpeedStrategy", strategy_class("DeepSpeedStrategy"), strategies.RayDeepSpeedStrategy
)
RayLightningEnvironment: Any = ByPackage(
    "RayLightningEnvironment", environment_class, strategies.RayLightningEnvironment
)
