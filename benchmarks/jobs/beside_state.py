"""Trains while a state of tensors that was saved is being stored.

python beside_state.py (holdfast|dcp|orbax) DIRECTORY NUM_TENSORS TENSOR_BYTES REPEATS

Writes `times.json`: what `steps.Training.beside` found, each time.
"""

import json
import sys
from pathlib import Path

import savers
import shared
import steps
import torch

library, directory = sys.argv[1], Path(sys.argv[2])
num_tensors, tensor_bytes, repeats = (int(text) for text in sys.argv[3:6])


def loop(config):
    tensors = {f"layer{number}": torch.randn(config["tensor_bytes"] // 4) for number in range(config["num_tensors"])}
    saver = savers.saver_of(config["library"], tensors, config["directory"])
    source, copy = (Path(config["directory"], name) for name in ("source", "copy"))
    training = steps.Training()
    found = []
    for step in range(config["repeats"] + 1):
        for tensor in tensors.values():
            tensor.add_(1)
        shared.rest(saver.run)
        shared.warm(source, copy)
        found.append(
            training.beside(lambda: saver.save(step), saver.done, rest=lambda: shared.rest(saver.run))  # noqa: B023 - called at once
        )
        saver.result()
        saver.tidy()
    # The first touches the memory that the later ones use again.
    Path(config["directory"], "times.json").write_text(json.dumps(found[1:]))


shared.write_files(directory / "source", num_tensors, tensor_bytes)
savers.run_loop(
    library,
    loop,
    {
        "library": library,
        "directory": str(directory),
        "num_tensors": num_tensors,
        "tensor_bytes": tensor_bytes,
        "repeats": repeats,
    },
)
