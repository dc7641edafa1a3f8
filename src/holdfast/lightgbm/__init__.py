"""LightGBM: workers that train one model together, and checkpoints of it.

Importing this package imports no LightGBM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from holdfast.former import no_such_name
from holdfast.lightgbm.callback import RayTrainReportCallback as RayTrainReportCallback
from holdfast.lightgbm.config import LightGBMConfig as LightGBMConfig
from holdfast.lightgbm.network import get_network_params as get_network_params
from holdfast.lightgbm.trainer import LightGBMTrainer as LightGBMTrainer

__all__ = ["LightGBMConfig", "LightGBMTrainer", "RayTrainReportCallback", "get_network_params"]


if not TYPE_CHECKING:  # which would take any name for there

    def __getattr__(name: str) -> NoReturn:
        raise no_such_name(__name__, name)
