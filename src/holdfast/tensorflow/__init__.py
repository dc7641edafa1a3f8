"""TensorFlow and Keras: workers that find each other, and checkpoints of Keras models.

Importing this package imports neither. The callback, which runs on any of Keras's backends, is in `holdfast.tensorflow.keras`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from holdfast.former import no_such_name
from holdfast.tensorflow.config import TensorflowConfig as TensorflowConfig
from holdfast.tensorflow.data import prepare_dataset_shard as prepare_dataset_shard
from holdfast.tensorflow.trainer import TensorflowTrainer as TensorflowTrainer

__all__ = ["TensorflowConfig", "TensorflowTrainer", "prepare_dataset_shard"]


if not TYPE_CHECKING:  # which would take any name for there

    def __getattr__(name: str) -> NoReturn:
        raise no_such_name(__name__, name)
