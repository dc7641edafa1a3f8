"""`XGBoostTrainer`."""

from __future__ import annotations

from typing import Unpack

from holdfast.former import knows_former_arguments
from holdfast.framework_trainer import TrainerArguments, TrainFunction, chosen, shows_all_arguments
from holdfast.trainer import DataParallelTrainer
from holdfast.xgboost.config import XGBoostConfig, check_installed


@knows_former_arguments
class XGBoostTrainer(DataParallelTrainer):
    """A `DataParallelTrainer` whose workers train one XGBoost model together, each on its own rows.

    Example:
        >>> trainer = XGBoostTrainer(train, scaling_config=ScalingConfig(num_workers=2))
        >>> result = trainer.fit()
    """

    @shows_all_arguments
    def __init__(
        self,
        train_loop_per_worker: TrainFunction,
        *,
        xgboost_config: XGBoostConfig | None = None,
        **others: Unpack[TrainerArguments],
    ) -> None:
        """Takes what to run and how; nothing starts before `fit()`.

        Args:
            train_loop_per_worker: Runs on every worker; takes the config, or nothing.
            xgboost_config: How the workers find each other.
            others: As for `DataParallelTrainer`.

        Raises:
            ConfigurationError: An argument cannot work.
            ImportError: XGBoost is not installed.
        """
        check_installed()
        config = chosen(xgboost_config, XGBoostConfig, "xgboost_config")
        super().__init__(train_loop_per_worker, backend_config=config, **others)
