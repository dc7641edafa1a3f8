"""`TorchTrainer`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

from holdfast.checkpoint import Checkpoint
from holdfast.config import RunConfig, ScalingConfig, ValidationConfig
from holdfast.errors import ConfigurationError
from holdfast.run import Run
from holdfast.torch.config import TorchConfig, check_installed
from holdfast.trainer import DataParallelTrainer


class TorchTrainer(DataParallelTrainer):
    """A `DataParallelTrainer` whose workers are members of a torch process group when the function begins.

    Example:
        >>> trainer = TorchTrainer(train, scaling_config=ScalingConfig(num_workers=2))
        >>> result = trainer.fit()
    """

    def __init__(
        self,
        train_loop_per_worker: Callable[[], Any] | Callable[[dict[str, Any]], Any],
        *,
        train_loop_config: dict[str, Any] | None = None,
        torch_config: TorchConfig | None = None,
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
            torch_config: How the process group is formed.
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
            ImportError: torch is not installed.
        """
        check_installed()
        if torch_config is not None and not isinstance(torch_config, TorchConfig):
            raise ConfigurationError(f"torch_config must be a TorchConfig, not {torch_config!r}")
        scaling = scaling_config or ScalingConfig()
        if not isinstance(scaling, ScalingConfig):
            raise ConfigurationError(f"scaling_config must be a ScalingConfig, not {scaling_config!r}")
        backend = dataclasses.replace(torch_config or TorchConfig(), gpus_per_worker=scaling.gpus_per_worker)
        super().__init__(
            train_loop_per_worker,
            train_loop_config=train_loop_config,
            backend_config=backend,
            scaling_config=scaling,
            run_config=run_config,
            datasets=datasets,
            dataset_config=dataset_config,
            validation_config=validation_config,
            metadata=metadata,
            resume_from=resume_from,
            resume_from_checkpoint=resume_from_checkpoint,
        )
