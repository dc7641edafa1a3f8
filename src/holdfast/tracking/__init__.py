"""Experiment trackers: callbacks that show a run's metrics in TensorBoard, MLflow and Weights & Biases.

Importing this package imports none of them; the callback that needs one does, when it is made.
"""

from __future__ import annotations

from holdfast.tracking.callback import TrackerCallback as TrackerCallback
from holdfast.tracking.entry import Entry as Entry
from holdfast.tracking.mlflow import MLflowCallback as MLflowCallback
from holdfast.tracking.tensorboard import TensorBoardCallback as TensorBoardCallback
from holdfast.tracking.tracker import Ending as Ending
from holdfast.tracking.tracker import Tracker as Tracker
from holdfast.tracking.wandb import WandbCallback as WandbCallback

__all__ = ["Ending", "Entry", "MLflowCallback", "TensorBoardCallback", "Tracker", "TrackerCallback", "WandbCallback"]
