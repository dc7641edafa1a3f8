"""XGBoost: workers that train one model together, and checkpoints of it.

Importing this package imports no XGBoost; the callbacks, subclasses of its own, do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.former import no_such_name
from holdfast.xgboost.config import XGBoostConfig as XGBoostConfig
from holdfast.xgboost.trainer import XGBoostTrainer as XGBoostTrainer

if TYPE_CHECKING:
    from holdfast.xgboost.callback import RayTrainReportCallback as RayTrainReportCallback
    from holdfast.xgboost.early_stopping import EarlyStopping as EarlyStopping

__all__ = ["EarlyStopping", "RayTrainReportCallback", "XGBoostConfig", "XGBoostTrainer"]


def __getattr__(name: str) -> object:
    if name not in ("EarlyStopping", "RayTrainReportCallback"):
        raise no_such_name(__name__, name)
    from holdfast.xgboost.config import check_installed

    check_installed()
    from holdfast.xgboost import callback, early_stopping

    globals()[name] = getattr(early_stopping if name == "EarlyStopping" else callback, name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
