"""`TensorflowTrainer`."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import Any

from holdfast.checkpoint import Checkpoint
from holdfast.config import RunConfig, ScalingConfig, ValidationConfig
from holdfast.errors import ConfigurationError
from holdfast.run import Run
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

    def __init__(
        self,
        train_loop_per_worker: Callable[[], Any] | Callable[[dict[str, Any]], Any],
        *,
        train_loop_config: dict[str, Any] | None = None,
        tensorflow_config: TensorflowConfig | None = None,
        scaling_config: ScalingConfig | None = None,
        run_config: RunConfig | None = None,
        datasets: Mapping[str, Any] | None = None,
        dataset_config: Any = None,
        validation_config: ValidationConfig | None = None,
        metadata: Mapping[str, Any] | None = None,
        resume_from: Checkpoint | Run | str | os.PathLike[str] | None = None,
        resume_from_checkpoint: Any = None,
    ) -> None:
        """Takes what to run and how; nothing starts before `fit()`.

        Args:
            train_loop_per_worker: Runs on every worker; takes the config, or nothing.
            train_loop_config: Handed to the function.
            tensorflow_config: How the workers find each other.
            scaling_config: How many workers; one by default.
            run_config: Where the run lies and how it is kept.
            datasets: As for `DataParallelTrainer`.
            dataset_config: As for `DataParallelTrainer`.
            validation_config: As for `DataParallelTrainer`.
            metadata: As for `DataParallelTrainer`.
            resume_from: As for `DataParallelTrainer`.
            resume_from_checkpoint: As for `DataParallelTrainer`.

        Raises:
            ConfigurationError: An argument cannot work.
            ImportError: TensorFlow is not installed.
        """
        check_installed()
        if tensorflow_config is not None and not isinstance(tensorflow_config, TensorflowConfig):
            raise ConfigurationError(f"tensorflow_config must be a TensorflowConfig, not {tensorflow_config!r}")
        super().__init__(
            train_loop_per_worker,
            train_loop_config=train_loop_config,
            backend_config=tensorflow_config or TensorflowConfig(),
            scaling_config=scaling_config,
            run_config=_with_keras(run_config),
            datasets=datasets,
            dataset_config=dataset_config,
            validation_config=validation_config,
            metadata=metadata,
            resume_from=resume_from,
            resume_from_checkpoint=resume_from_checkpoint,
        )


def _with_keras(run_config: RunConfig | None) -> RunConfig | None:
    """The configuration with the variable that says what `tf.keras` is, which TensorFlow reads when a worker imports it with the function."""
    config = run_config if run_config is not None else RunConfig()
    if not isinstance(config, RunConfig) or importlib.util.find_spec("tf_keras") is None:
        return run_config
    variables = (config.worker_runtime_env or {}).get("env_vars") or {}
    if LEGACY_KERAS in os.environ or LEGACY_KERAS in variables:
        return run_config
    return dataclasses.replace(config, worker_runtime_env={"env_vars": {**variables, LEGACY_KERAS: "1"}})
