"""`LightGBMTrainer`."""

from __future__ import annotations

from typing import Unpack

from holdfast.former import knows_former_arguments
from holdfast.framework_trainer import TrainerArguments, TrainFunction, chosen, shows_all_arguments
from holdfast.lightgbm.config import LightGBMConfig, check_installed
from holdfast.trainer import DataParallelTrainer


@knows_former_arguments
class LightGBMTrainer(DataParallelTrainer):
    """A `DataParallelTrainer` whose workers can train one LightGBM model together: see `get_network_params`.

    Example:
        >>> trainer = LightGBMTrainer(train, scaling_config=ScalingConfig(num_workers=2))
        >>> result = trainer.fit()
    """

    @shows_all_arguments
    def __init__(
        self,
        train_loop_per_worker: TrainFunction,
        *,
        lightgbm_config: LightGBMConfig | None = None,
        **others: Unpack[TrainerArguments],
    ) -> None:
        """Takes what to run and how; nothing starts before `fit()`.

        Args:
            train_loop_per_worker: Runs on every worker; takes the config, or nothing.
            lightgbm_config: How the workers find each other.
            others: As for `DataParallelTrainer`.

        Raises:
            ConfigurationError: An argument cannot work.
            ImportError: LightGBM is not installed.
        """
        check_installed()
        config = chosen(lightgbm_config, LightGBMConfig, "lightgbm_config")
        super().__init__(train_loop_per_worker, backend_config=config, **others)
