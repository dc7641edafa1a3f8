"""`TensorflowTrainer`."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from typing import Unpack

from holdfast.config import RunConfig
from holdfast.framework_trainer import TrainerArguments, TrainFunction, chosen, shows_all_arguments
from holdfast.tensorflow.config import LEGACY_KERAS, TensorflowConfig, check_installed
from holdfast.trainer import DataParallelTrainer


class TensorflowTrainer(DataParallelTrainer):
    """A `DataParallelTrainer` whose workers `tf.distribute.MultiWorkerMirroredStrategy` finds: TF_CONFIG is set.

    Where tf_keras is installed it is `tf.keras` in the workers, for Keras 3's `fit` knows nothing of that strategy; TF_USE_LEGACY_KERAS=0 in
    the script's environment keeps Keras 3. `import keras` is Keras 3 either way.

    Example:
        >>> trainer = TensorflowTrainer(train, scaling_config=ScalingConfig(num_workers=2))
        >>> result = trainer.fit()
    """

    @shows_all_arguments
    def __init__(
        self,
        train_loop_per_worker: TrainFunction,
        *,
        tensorflow_config: TensorflowConfig | None = None,
        **others: Unpack[TrainerArguments],
    ) -> None:
        """Takes what to run and how; nothing starts before `fit()`.

        Args:
            train_loop_per_worker: Runs on every worker; takes the config, or nothing.
            tensorflow_config: How the workers find each other.
            others: As for `DataParallelTrainer`.

        Raises:
            ConfigurationError: An argument cannot work.
            ImportError: TensorFlow is not installed.
        """
        check_installed()
        config = chosen(tensorflow_config, TensorflowConfig, "tensorflow_config")
        others["run_config"] = _with_keras(others.get("run_config"))
        super().__init__(train_loop_per_worker, backend_config=config, **others)


def _with_keras(run_config: RunConfig | None) -> RunConfig | None:
    """The configuration with the variable that says what `tf.keras` is, which TensorFlow reads when a worker imports it with the function."""
    config = run_config if run_config is not None else RunConfig()
    if not isinstance(config, RunConfig) or importlib.util.find_spec("tf_keras") is None:
        return run_config
    variables = (config.worker_runtime_env or {}).get("env_vars") or {}
    if LEGACY_KERAS in os.environ or LEGACY_KERAS in variables:
        return run_config
    return dataclasses.replace(config, worker_runtime_env={"env_vars": {**variables, LEGACY_KERAS: "1"}})
