"""Saves a state of tensors again and again: how long training waits, and when the checkpoint is there.

python state.py (holdfast|holdfast_strict|dcp|dcp_unsynced|orbax) DIRECTORY NUM_TENSORS TENSOR_BYTES REPEATS (wait|persist)

To measure `persist`, free memory is made warm for the files first; to measure `wait` not, for what the kernel does with freed memory
goes on for a moment, beside the copying.

Writes `times.json`: seconds until the call returned and until the checkpoint was committed, the first of each apart, and
of one copy of the same bytes into memory that is in use already.
"""

import json
import sys
import time
from pathlib import Path

import savers
import shared
import torch

library, directory = sys.argv[1], Path(sys.argv[2])
num_tensors, tensor_bytes, repeats = (int(text) for text in sys.argv[3:6])
warms = sys.argv[6] == "persist"


def loop(config):
    tensors = {f"layer{number}": torch.randn(config["tensor_bytes"] // 4) for number in range(config["num_tensors"])}
    copies = [tensor.clone() for tensor in tensors.values()]
    saver = savers.saver_of(config["library"], tensors, config["directory"])
    source, copy = (Path(config["directory"], name) for name in ("source", "copy"))
    times = {"wait_s": [], "committed_s": [], "memcpy_s": []}

    def memcpy(step):
        begin = time.perf_counter()
        for target, tensor in zip(copies, tensors.values(), strict=True):
            target.copy_(tensor)
        times["memcpy_s"].append(time.perf_counter() - begin)

    def save(step):
        begin = time.perf_counter()
        saver.save(step)
        times["wait_s"].append(time.perf_counter() - begin)
        saver.result()
        times["committed_s"].append(time.perf_counter() - begin)
        saver.tidy()

    for step in range(config["repeats"] + 1):
        for action in (memcpy, save) if step % 2 else (save, memcpy):
            for tensor in tensors.values():
                tensor.add_(1)
            shared.rest(saver.run)
            if config["warms"]:
                shared.warm(source, copy)
            action(step)
    result = {name: values[1:] for name, values in times.items()}
    result |= {"first_wait_s": times["wait_s"][0], "first_committed_s": times["committed_s"][0]}
    Path(config["directory"], "times.json").write_text(json.dumps(result))


if warms:
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
        "warms": warms,
    },
)
