"""XGBoost: workers that train one model together, and checkpoints of it.

Importing this package imports no XGBoost; the callback, a subclass of one of its classes, does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.xgboost.config import XGBoostConfig as XGBoostConfig
from holdfast.xgboost.trainer import XGBoostTrainer as XGBoostTrainer

if TYPE_CHECKING:
    from holdfast.xgboost.callback import RayTrainReportCallback as RayTrainReportCallback

__all__ = ["RayTrainReportCallback", "XGBoostConfig", "XGBoostTrainer"]


def __getattr__(name: str) -> object:
    if name != "RayTrainReportCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from holdfast.xgboost.config import check_installed

    check_installed()
    from holdfast.xgboost.callback import RayTrainReportCallback

    globals()[name] = RayTrainReportCallback
    return RayTrainReportCallback


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
