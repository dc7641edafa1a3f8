"""LightGBM: workers that train one model together, and checkpoints of it.

Importing this package imports no LightGBM.
"""

from __future__ import annotations

from holdfast.lightgbm.callback import RayTrainReportCallback as RayTrainReportCallback
from holdfast.lightgbm.config import LightGBMConfig as LightGBMConfig
from holdfast.lightgbm.network import get_network_params as get_network_params
from holdfast.lightgbm.trainer import LightGBMTrainer as LightGBMTrainer

__all__ = ["LightGBMConfig", "LightGBMTrainer", "RayTrainReportCallback", "get_network_params"]
