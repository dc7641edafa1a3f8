"""What a Keras model's file does not say, and `fit` needs to go on where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from holdfast.checkpoint import Checkpoint
from holdfast.errors import FormatError

_FILE = "progress.json"


class ResumePoint(msgspec.Struct, frozen=True):
    """Lies beside the model.

    Attributes:
        epoch: The first that was not finished.
        seeds: The states of the layers' seed generators, in the model's order, each an array of uint32 and of shape (2,). Keras 3 (3.15)
            leaves them out of its files.
    """

    epoch: int
    seeds: list[list[int]] = []

    def write(self, directory: str) -> None:
        """Puts it into a checkpoint."""
        Path(directory, _FILE).write_bytes(msgspec.json.encode(self))


def read(checkpoint: Checkpoint) -> ResumePoint:
    """That of a checkpoint.

    Raises:
        StoreNotFoundError: It has none.
        FormatError: It cannot be read.
    """
    with checkpoint.open(_FILE) as file:
        data = file.read()
    try:
        return msgspec.json.decode(data, type=ResumePoint)
    except msgspec.DecodeError as error:
        raise FormatError(f"{_FILE} of {checkpoint.path!r} does not say where to go on: {error}") from error


def seeds_of(model: Any) -> list[list[int]]:
    """The states of a model's seed generators; tf_keras has none that are variables."""
    return [variable.numpy().tolist() for variable in _seed_variables(model)]


def set_seeds(model: Any, seeds: list[list[int]]) -> None:
    """Has a loaded model's seed generators go on where they were."""
    for variable, seed in zip(_seed_variables(model), seeds, strict=True):
        variable.assign(seed)


def _seed_variables(model: Any) -> list[Any]:
    """`variables` are, by Keras's documentation, the `weights` and the states of seed generators."""
    weights = {id(weight) for weight in model.weights}
    return [variable for variable in model.variables if id(variable) not in weights]
