"""TensorFlow and Keras: workers that find each other, and checkpoints of Keras models.

Importing this package imports neither. The callback, which runs on any of Keras's backends, is in `holdfast.tensorflow.keras`.
"""

from __future__ import annotations

from holdfast.tensorflow.config import TensorflowConfig as TensorflowConfig
from holdfast.tensorflow.data import prepare_dataset_shard as prepare_dataset_shard
from holdfast.tensorflow.trainer import TensorflowTrainer as TensorflowTrainer

__all__ = ["TensorflowConfig", "TensorflowTrainer", "prepare_dataset_shard"]
