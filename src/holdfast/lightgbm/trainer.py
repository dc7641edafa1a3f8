"""`LightGBMTrainer`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from holdfast.checkpoint import Checkpoint
from holdfast.config import RunConfig, ScalingConfig, ValidationConfig
from holdfast.errors import ConfigurationError
from holdfast.lightgbm.config import LightGBMConfig, check_installed
from holdfast.run import Run
from holdfast.trainer import DataParallelTrainer


class LightGBMTrainer(DataParallelTrainer):
    """A `DataParallelTrainer` whose workers can train one LightGBM model together: see `get_network_params`.

    Example:
        >>> trainer = LightGBMTrainer(train, scaling_config=ScalingConfig(num_workers=2))
        >>> result = trainer.fit()
    """

    def __init__(
        self,
        train_loop_per_worker: Callable[[], Any] | Callable[[dict[str, Any]], Any],
        *,
        train_loop_config: dict[str, Any] | None = None,
        lightgbm_config: LightGBMConfig | None = None,
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
            lightgbm_config: How the workers find each other.
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
            ImportError: LightGBM is not installed.
        """
        check_installed()
        if lightgbm_config is not None and not isinstance(lightgbm_config, LightGBMConfig):
            raise ConfigurationError(f"lightgbm_config must be a LightGBMConfig, not {lightgbm_config!r}")
        super().__init__(
            train_loop_per_worker,
            train_loop_config=train_loop_config,
            backend_config=lightgbm_config or LightGBMConfig(),
            scaling_config=scaling_config,
            run_config=run_config,
            datasets=datasets,
            dataset_config=dataset_config,
            validation_config=validation_config,
            metadata=metadata,
            resume_from=resume_from,
            resume_from_checkpoint=resume_from_checkpoint,
        )
