"""A training job that loses a rank ends with the weights of one that did not."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest

import holdfast as train
from holdfast import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from holdfast.torch import TorchTrainer

EPOCHS = 6


def fit(tmp_path: Path, name: str, fails: str | None) -> train.Result:
    epochs = EPOCHS  # by value: the workers cannot import this module

    def loop(config: dict[str, Any]) -> tuple[list[float], list[list[float]], int]:
        import torch
        import torch.distributed as dist

        from holdfast.torch import enable_reproducibility, prepare_model

        rank = train.get_context().get_world_rank()
        enable_reproducibility(seed=1)
        inputs = torch.randn(16, 4)
        model: Any = prepare_model(torch.nn.Linear(4, 1))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        start, resumed = 0, train.get_checkpoint()
        if resumed is not None:
            with resumed.as_directory() as directory:
                state = torch.load(Path(directory, "state.pt"))
            model.module.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            start = state["epoch"] + 1

        for epoch in range(start, epochs):
            for step in range(4):
                if config["fails"] and resumed is None and (rank, epoch, step) == (1, 3, 2):
                    if config["fails"] == "raise":
                        raise RuntimeError("on purpose")
                    os.kill(os.getpid(), getattr(signal, config["fails"]))
                optimizer.zero_grad()
                model(inputs.chunk(8)[2 * step + rank]).square().mean().backward()
                optimizer.step()
            with tempfile.TemporaryDirectory() as directory:
                checkpoint = None
                if rank == 0:
                    state = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
                    torch.save(state, Path(directory, "state.pt"))
                    checkpoint = Checkpoint.from_directory(directory)
                train.report({"epoch": epoch}, checkpoint=checkpoint)

        weights = model.module.weight.detach().flatten()
        everyone = [torch.empty_like(weights) for _ in range(2)]
        dist.all_gather(everyone, weights)
        return weights.tolist(), [tensor.tolist() for tensor in everyone], start

    return TorchTrainer(
        loop,
        train_loop_config={"fails": fails},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            name=name, storage_path=tmp_path, progress="quiet", failure_config=FailureConfig(max_failures=1)
        ),
    ).fit()


@pytest.mark.parametrize("fails", ["SIGKILL", "SIGSEGV", "raise"])
def test_a_rank_lost_in_mid_epoch_changes_nothing(fails: str, tmp_path: Path) -> None:
    calm, _, _ = fit(tmp_path, "calm", None).return_value
    hit = fit(tmp_path, "hit", fails)
    weights, by_rank, start = hit.return_value
    assert start == 3
    assert weights == calm
    assert by_rank == [weights, weights]
    reports = train.Run(hit.path).reports()
    assert [report["metrics"]["epoch"] for report in reports] == list(range(EPOCHS))
    assert [report["attempt"] for report in reports] == [1, 1, 1, 2, 2, 2]
