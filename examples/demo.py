"""Trains a classifier of handwritten digits twice: undisturbed, and with a worker killed in mid-training.

Both runs must end with the same weights. Run it: python examples/demo.py [--storage DIR]
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import holdfast as train
import holdfast.torch

EPOCHS = 15
KILLED_IN_EPOCH = 7
TESTED = 360  # of the 1797 images
ENOUGH_ACCURACY = 0.97


def train_digits(config: dict[str, Any]) -> dict[str, Any]:
    began_at = time.time()
    rank = train.get_context().get_world_rank()
    holdfast.torch.enable_reproducibility(seed=1)
    images, labels = torch.from_numpy(config["images"]), torch.from_numpy(config["labels"])
    loader = DataLoader(TensorDataset(images[:-TESTED], labels[:-TESTED]), batch_size=32, shuffle=True)
    loader = holdfast.torch.prepare_data_loader(loader)
    network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    model: Any = holdfast.torch.prepare_model(network)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    first_epoch = 0
    resumed = train.get_checkpoint()
    if resumed is not None:
        with resumed.as_directory() as directory:
            state = torch.load(Path(directory, "state.pt"))
        network.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first_epoch = state["epoch"] + 1

    for epoch in range(first_epoch, EPOCHS):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for number, (batch, wanted) in enumerate(loader):
            if config["kill_note"] and resumed is None and (rank, epoch) == (1, KILLED_IN_EPOCH) and number == 10:
                Path(config["kill_note"]).write_text(str(time.time()))
                os.kill(os.getpid(), signal.SIGKILL)  # no exception, no clean-up: the process is gone
            loss = nn.functional.cross_entropy(model(batch), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        with torch.no_grad():
            accuracy = (network(images[-TESTED:]).argmax(dim=1) == labels[-TESTED:]).double().mean().item()
        with tempfile.TemporaryDirectory() as directory:
            checkpoint = None
            if rank == 0:
                state = {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
                torch.save(state, Path(directory, "state.pt"))
                checkpoint = train.Checkpoint.from_directory(directory)
            train.report({"epoch": epoch, "accuracy": accuracy, "loss": loss.item()}, checkpoint=checkpoint)

    digest = hashlib.sha256(b"".join(parameter.detach().numpy().tobytes() for parameter in network.parameters()))
    return {"accuracy": accuracy, "weights": digest.hexdigest(), "began_at": began_at, "first_epoch": first_epoch}


def fit(storage: str, name: str, kill_note: Path | None) -> tuple[train.Result, float]:
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0)).numpy()
    trainer = holdfast.torch.TorchTrainer(
        train_digits,
        train_loop_config={
            "images": (digits.data[order] / 16).astype("float32"),
            "labels": digits.target[order],
            "kill_note": str(kill_note) if kill_note else None,
        },
        scaling_config=train.ScalingConfig(num_workers=2),
        run_config=train.RunConfig(
            name=name,
            storage_path=storage,
            checkpoint_config=train.CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="accuracy"),
            failure_config=train.FailureConfig(max_failures=1),
        ),
    )
    start = time.perf_counter()
    return trainer.fit(), time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--storage", default=".demo", help="where the two runs lie (default: .demo)")
    return show(*train_twice(str(Path(parser.parse_args().storage).resolve())))


def train_twice(storage: str) -> tuple[train.Result, float, train.Result, float, float | None]:
    """Both runs, each with the seconds it took, and when the worker was killed."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")

    print(f"1. Undisturbed: 2 workers, {EPOCHS} epochs on the digits", flush=True)
    calm, calm_s = fit(storage, f"calm-{stamp}", None)
    print(f"\n2. The same again, but rank 1 is killed (SIGKILL) in the middle of epoch {KILLED_IN_EPOCH}", flush=True)
    with tempfile.TemporaryDirectory() as notes:
        kill_note = Path(notes, "killed_at")
        hit, hit_s = fit(storage, f"killed-{stamp}", kill_note)
        killed_at = float(kill_note.read_text()) if kill_note.exists() else None
    return calm, calm_s, hit, hit_s, killed_at


def show(calm: train.Result, calm_s: float, hit: train.Result, hit_s: float, killed_at: float | None) -> int:
    run = train.Run(hit.path)
    attempts = [report["attempt"] for report in run.reports()]
    epochs = [report["metrics"]["epoch"] for report in run.reports()]
    end, calm_end = hit.return_value, calm.return_value

    print("\nWhat the failure cost")
    if killed_at is not None:
        print(f"  {end['began_at'] - killed_at:.2f} s from the kill to the first line of attempt {attempts[-1]}")
    print(f"  epoch {end['first_epoch']} was begun again; {len(epochs) - len(set(epochs))} epochs were reported twice")
    print(f"  fit() took {hit_s:.2f} s, and {calm_s:.2f} s undisturbed (that one also imported torch)")

    print("What was kept")
    for checkpoint, metrics in hit.best_checkpoints:
        latest = ", the latest" if checkpoint == hit.checkpoint else ""
        size_kib = sum(file.size_bytes for file in checkpoint.files()) / 1024
        name = Path(checkpoint.path).name
        print(f"  {name}: epoch {metrics['epoch']}, accuracy {metrics['accuracy']:.4f}, {size_kib:.0f} KiB{latest}")
    damaged = [name for name, problems in run.verify().items() if problems]
    print(f"  every byte compared with what was reported: {'damaged: ' + str(damaged) if damaged else 'all intact'}")

    print("What came of it")
    print(f"  test accuracy {end['accuracy']:.4f}, undisturbed {calm_end['accuracy']:.4f}")
    same = end["weights"] == calm_end["weights"]
    print(f"  the final weights are {'the same, bit for bit' if same else 'NOT the same'}")
    print(f"Where it lies\n  {hit.path}\n  {calm.path}")

    problems = {
        "no worker was killed": killed_at is None,
        "the run was not resumed in the epoch of the kill": end["first_epoch"] != KILLED_IN_EPOCH,
        "it did not take two attempts": sorted(set(attempts)) != [1, 2],
        "an epoch is missing or was reported twice": epochs != list(range(EPOCHS)),
        "the weights differ from those of the undisturbed run": not same,
        f"the accuracy is below {ENOUGH_ACCURACY}": end["accuracy"] < ENOUGH_ACCURACY,
        "a checkpoint is damaged": bool(damaged),
    }
    for problem in (text for text, found in problems.items() if found):
        print(f"FAILED: {problem}", file=sys.stderr)
    return 1 if any(problems.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
