"""Weights that Transformers leaves as they are when it loads a checkpoint.

Some models are saved under other names than their weights have in memory: those whose layers were renamed (ViT), whose experts are
kept together (Mixtral, Qwen MoE), and many that see. `from_pretrained` knows how to go back. `Trainer` does not, when it resumes and when it
loads the best model: it loads what has the same name, warns of the rest, and trains on with random weights in its place
(https://github.com/huggingface/transformers/issues/48805, true of 5.24).
"""

from __future__ import annotations

import copy
import json
import logging
import os

import torch
import transformers
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from holdfast.checkpoint import Checkpoint
from holdfast.worker.context import get_checkpoint, get_context

_LOG = logging.getLogger("holdfast")
_STATE, _WEIGHTS, _INDEX = "trainer_state.json", "model.safetensors", "model.safetensors.index.json"


def complete_resumed(model: object, args: TrainingArguments, state: TrainerState, name: str) -> None:
    """Loads what a trainer that has just resumed has left out.

    Transformers does not tell a callback where it resumes from. It is the run's latest checkpoint, or one of Transformers' own; its step tells.

    Args:
        name: The directory of a checkpoint that Transformers' own is in.
    """
    latest, own = get_checkpoint(), os.path.join(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
    if latest is not None and step_of(latest, f"{name}/") == state.global_step:
        _complete(model, args, latest, f"{name}/")
    elif os.path.isdir(own):
        _complete(model, args, Checkpoint.from_directory(own), "")


def complete_best(model: object, args: TrainingArguments, state: TrainerState) -> None:
    """Loads what a trainer that has just loaded its best model has left out."""
    best = state.best_model_checkpoint
    if args.load_best_model_at_end and best is not None and os.path.isdir(best):
        _complete(model, args, Checkpoint.from_directory(best), "")


def _complete(model: object, args: TrainingArguments, checkpoint: Checkpoint, prefix: str) -> None:
    # What is sharded is saved by the names in memory, and loaded by those.
    if args.fsdp or args.deepspeed or not isinstance(model, PreTrainedModel):
        return
    if any(isinstance(weight, DTensor) for weight in model.parameters()):
        return
    left_out = _names(checkpoint, prefix) - model.state_dict().keys()
    if not left_out:
        return
    # As wide as any weight, so that none is rounded on its way.
    dtype = {"dtype" if _version() >= (4, 56) else "torch_dtype": _widest(model)}
    with checkpoint.as_directory() as directory:
        loaded = type(model).from_pretrained(f"{directory}/{prefix}", config=copy.deepcopy(model.config), **dtype)
    model.load_state_dict(loaded.state_dict())
    if get_context().get_world_rank() == 0:
        _LOG.warning(
            "Transformers left out weights of %s that it saves under other names, such as %s; they are loaded now",
            type(model).__name__,
            min(left_out),
        )


def _names(checkpoint: Checkpoint, prefix: str) -> set[str]:
    """The names of the weights in a checkpoint of Transformers; none where it has other files than it writes today."""
    files = {file.path for file in checkpoint.files()}
    if prefix + _INDEX in files:
        with checkpoint.open(prefix + _INDEX) as file:
            return set(json.load(file)["weight_map"])
    if prefix + _WEIGHTS in files:
        with checkpoint.open(prefix + _WEIGHTS) as file:
            # The file begins with the length of its header, 8 bytes, and the header: https://github.com/huggingface/safetensors#format
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return set(header) - {"__metadata__"}
    return set()


def step_of(checkpoint: Checkpoint, prefix: str) -> int | None:
    """The step of the checkpoint of Transformers that lies below `prefix`, if one does."""
    if prefix + _STATE not in {file.path for file in checkpoint.files()}:
        return None
    with checkpoint.open(prefix + _STATE) as file:
        step: int = json.load(file)["global_step"]
    return step


def _widest(model: PreTrainedModel) -> torch.dtype:
    found = torch.float32
    for weight in model.parameters():
        if weight.is_floating_point():
            found = torch.promote_types(found, weight.dtype)
    return found


def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in transformers.__version__.split(".")[:2])
