"""`TorchTrainer`."""

from __future__ import annotations

import dataclasses
from typing import Unpack

from holdfast.framework_trainer import TrainerArguments, TrainFunction, chosen, shows_all_arguments
from holdfast.torch.config import TorchConfig, check_installed
from holdfast.trainer import DataParallelTrainer


class TorchTrainer(DataParallelTrainer):
    """A `DataParallelTrainer` whose workers are members of a torch process group when the function begins.

    Example:
        >>> trainer = TorchTrainer(train, scaling_config=ScalingConfig(num_workers=2))
        >>> result = trainer.fit()
    """

    @shows_all_arguments
    def __init__(
        self,
        train_loop_per_worker: TrainFunction,
        *,
        torch_config: TorchConfig | None = None,
        **others: Unpack[TrainerArguments],
    ) -> None:
        """Takes what to run and how; nothing starts before `fit()`.

        Args:
            train_loop_per_worker: Runs on every worker; takes the config, or nothing.
            torch_config: How the process group is formed.
            others: As for `DataParallelTrainer`.

        Raises:
            ConfigurationError: An argument cannot work.
            ImportError: torch is not installed.
        """
        check_installed()
        config = chosen(torch_config, TorchConfig, "torch_config")
        super().__init__(train_loop_per_worker, backend_config=config, **others)
        self.backend_config = dataclasses.replace(config, gpus_per_worker=self.scaling_config.gpus_per_worker)
