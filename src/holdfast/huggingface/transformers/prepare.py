"""`prepare_trainer`, and what must be right before a `Trainer` trains in a worker."""

from __future__ import annotations

from transformers import Trainer, TrainingArguments

from holdfast.errors import ConfigurationError
from holdfast.worker.context import get_context


def prepare_trainer(trainer: Trainer) -> Trainer:
    """Checks that a `transformers.Trainer` trains together with those of the other workers, and gives it back.

    Everything else is the callback's.

    Args:
        trainer: With its arguments, before `train()`.

    Raises:
        OutsideWorkerError: Called outside a training function.
        ConfigurationError: Not a `Trainer`; or it would train alone, beside those of the other workers.
    """
    if not isinstance(trainer, Trainer):
        raise ConfigurationError(
            f"prepare_trainer(trainer) takes a transformers.Trainer, not {trainer!r}; pass the trainer that was made in "
            "this function"
        )
    check_together(trainer.args)
    return trainer


def check_together(args: TrainingArguments) -> None:
    """Where Transformers found no process group it trains the whole model on each worker, without a word.

    Raises:
        OutsideWorkerError: Called outside a training function.
        ConfigurationError: It did not.
    """
    size = get_context().get_world_size()
    if args.world_size != size:
        raise ConfigurationError(
            f"Transformers trains with a world size of {args.world_size}, but there are {size} workers, each of which would train by "
            "itself into the same directory; run the function with holdfast.torch.TorchTrainer, make the TrainingArguments in the "
            "function, and on CPUs pass them use_cpu=True"
        )
