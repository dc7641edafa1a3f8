"""Models in parts, saved by their framework's own functions: each rank reports its directory, the merged checkpoint restores."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import holdfast as train

pytest.importorskip("torch")

from holdfast.torch import TorchTrainer

STEPS = 6
KILLED_AT = 3


def needs(library):
    return pytest.mark.skipif(importlib.util.find_spec(library) is None, reason=f"{library} is not installed")


def fit(function, tmp_path, name, workers=2, failures=0, resume_from=None, **config):
    return TorchTrainer(
        function,
        train_loop_config=config,
        scaling_config=train.ScalingConfig(num_workers=workers),
        run_config=train.RunConfig(
            name=name,
            storage_path=tmp_path,
            failure_config=train.FailureConfig(max_failures=failures),
            worker_runtime_env={"env_vars": {"DS_ACCELERATOR": "cpu"}},
        ),
        resume_from=resume_from,
    ).fit()


def history(result):
    """The loss of each step, which must be there once."""
    reports = [report["metrics"] for report in train.Run(result.path).reports()]
    assert [report["step"] for report in reports] == sorted({report["step"] for report in reports})
    return {report["step"]: report["loss"] for report in reports}


def undisturbed(steps):
    """The same training in plain torch, in one process."""
    import torch

    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = {}
    for step in range(steps):
        inputs = batch(step)
        loss = loss_of(model, inputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses[step] = loss.item()
    return losses


def make_model():
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))


def batch(step):
    import torch

    return torch.randn(8, 8, generator=torch.Generator().manual_seed(step))


def loss_of(model, inputs):
    return (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()


def report(step, loss, directory):
    """With the mean of all ranks' losses."""
    import torch

    context = train.get_context()
    total = loss.detach().clone()
    torch.distributed.all_reduce(total)
    train.report(
        {"step": step, "loss": total.item() / context.get_world_size()}, train.Checkpoint.from_directory(directory)
    )


def kill_at(step, config):
    """One rank, once, in the middle of a step."""
    if step != config.get("killed_at") or train.get_context().get_world_rank() != 1:
        return
    if not (marker := Path(config["marker"])).exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def fsdp2(config):
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    rank, size = train.get_context().get_world_rank(), train.get_context().get_world_size()
    model = make_model()
    mesh = init_device_mesh("cpu", (size,))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model[2], mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    def state(step):
        model_state, optimizer_state = get_state_dict(model, optimizer)
        return {"model": model_state, "optimizer": optimizer_state, "step": step}

    first = 0
    if checkpoint := train.get_checkpoint():
        saved = state(0)
        with checkpoint.as_directory() as directory:
            dcp.load(saved, checkpoint_id=directory)
        set_state_dict(model, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"])
        first = saved["step"] + 1
    for step in range(first, config["steps"]):
        loss = loss_of(model, batch(step)[rank::size])
        optimizer.zero_grad()
        loss.backward()
        kill_at(step, config)
        optimizer.step()
        with tempfile.TemporaryDirectory() as directory:
            dcp.save(state(step), checkpoint_id=directory)
            report(step, loss, directory)


def test_fsdp2_saved_by_hand_comes_back_after_a_kill_and_on_another_number_of_ranks(tmp_path):
    result = fit(fsdp2, tmp_path, "run", failures=1, steps=STEPS, killed_at=KILLED_AT, marker=str(tmp_path / "killed"))
    assert (tmp_path / "killed").exists()
    assert history(result) == pytest.approx(undisturbed(STEPS), rel=1e-4)
    assert sorted(file.path for file in result.checkpoint.files()) == [".metadata", "__0_0.distcp", "__1_0.distcp"]
    result = fit(fsdp2, tmp_path, "run", workers=1, steps=STEPS + 2)
    assert history(result) == pytest.approx(undisturbed(STEPS + 2), rel=1e-4)


def zero(config):
    import deepspeed

    # On a CPU only: DeepSpeed would compile a helper for ranks that share memory when it is first used.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    rank, size = train.get_context().get_world_rank(), train.get_context().get_world_size()
    checkpoint = train.get_checkpoint()
    is_universal = checkpoint is not None and any(file.path == "latest_universal" for file in checkpoint.files())
    model = make_model()
    engine, _, _, scheduler = deepspeed.initialize(
        model=model,
        model_parameters=model.parameters(),
        config={
            "train_batch_size": 8,
            "zero_optimization": {"stage": config["stage"]},
            "optimizer": {"type": "AdamW", "params": {"lr": 0.01, "torch_adam": True}},
            "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10}},
            "checkpoint": {"load_universal": is_universal},
        },
    )
    first = 0
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            path, client_state = engine.load_checkpoint(directory)
        assert path is not None
        first = client_state["step"] + 1
    for step in range(first, config["steps"]):
        loss = loss_of(engine, batch(step)[rank::size])
        engine.backward(loss)
        kill_at(step, config)
        engine.step()
        with tempfile.TemporaryDirectory() as directory:
            engine.save_checkpoint(directory, client_state={"step": step})
            report(step, loss, directory)
    return scheduler.get_last_lr()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """DeepSpeed itself, undisturbed: what its stages store differs, what they compute does not."""
    return fit(zero, tmp_path_factory.mktemp("plain"), "run", stage=1, steps=STEPS + 2)


@needs("deepspeed")
@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 3])
def test_zero_comes_back_after_a_kill(stage, plain, tmp_path):
    marker = str(tmp_path / "killed")
    result = fit(zero, tmp_path, "run", failures=1, stage=stage, steps=STEPS + 2, killed_at=KILLED_AT, marker=marker)
    assert (tmp_path / "killed").exists()
    assert history(result) == pytest.approx(history(plain), rel=1e-4)
    assert result.return_value == plain.return_value
    names = {file.path.rpartition("/")[2] for file in result.checkpoint.files()}
    assert {"latest", "zero_pp_rank_0_mp_rank_00_optim_states.pt", "zero_pp_rank_1_mp_rank_00_optim_states.pt"} <= names


@needs("deepspeed")
@pytest.mark.parametrize("stage", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_zero_goes_on_with_another_number_of_ranks_from_a_universal_checkpoint(stage, plain, tmp_path):
    run = plain if stage == 1 else fit(zero, tmp_path, "run", stage=stage, steps=STEPS)
    before = train.Run(run.path).checkpoints[STEPS - 1].checkpoint
    with pytest.raises(train.TrainingFailedError, match="world size"):
        fit(zero, tmp_path, "as it is", workers=1, stage=stage, steps=STEPS + 2, resume_from=before)
    with before.as_directory() as directory:
        tag = Path(directory, "latest").read_text()
        places = ["--input_folder", os.path.join(directory, tag), "--output_folder", tmp_path / "universal" / tag]
        subprocess.run(
            [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state", *places],
            env={**os.environ, "DS_ACCELERATOR": "cpu"},
            check=True,
            timeout=280,
        )
    result = fit(zero, tmp_path, "on one", workers=1, stage=stage, steps=STEPS + 2, resume_from=tmp_path / "universal")
    expected = {step: loss for step, loss in history(plain).items() if step >= STEPS}
    assert history(result) == pytest.approx(expected, rel=1e-4)


def megatron(config):
    import torch

    # What its checkpoints need of CUDA, and what a part of it that is not used here imports for many seconds.
    torch.cuda.synchronize = lambda *_: None
    torch.cuda.current_device = lambda: "cpu"
    sys.modules.setdefault("tensorflow", None)
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing import ShardedTensor

    rank, size = train.get_context().get_world_rank(), train.get_context().get_world_size()

    def sharded(weight, momentum, step):
        # One layer, whose rows are divided among the ranks.
        return {
            "weight": ShardedTensor.from_rank_offsets("weight", weight, (0, rank, size)),
            "momentum": ShardedTensor.from_rank_offsets("momentum", momentum, (0, rank, size)),
            "step": step,
        }

    torch.manual_seed(0)
    weight = torch.randn(8, 8).chunk(size)[rank].clone()
    momentum, first = torch.zeros_like(weight), 0
    if checkpoint := train.get_checkpoint():
        with checkpoint.as_directory() as directory:
            state = dist_checkpointing.load(sharded(weight, momentum, 0), directory)
        weight, momentum, first = state["weight"], state["momentum"], state["step"] + 1
    for step in range(first, config["steps"]):
        inputs = batch(step)
        residual = inputs @ weight.T - inputs.sum(1, keepdim=True)
        momentum = 0.9 * momentum + residual.T @ inputs / len(inputs)
        kill_at(step, config)
        weight = weight - 0.05 * momentum
        with tempfile.TemporaryDirectory() as directory:
            dist_checkpointing.save(sharded(weight, momentum, step), directory)
            report(step, residual.square().sum() * size, directory)


@pytest.mark.slow  # its example in docs/ runs with the others
@needs("megatron")
def test_megatron_core_shards_come_back_after_a_kill_and_on_another_number_of_ranks(tmp_path):
    import torch

    result = fit(
        megatron, tmp_path, "run", failures=1, steps=STEPS, killed_at=KILLED_AT, marker=str(tmp_path / "killed")
    )
    assert (tmp_path / "killed").exists()
    names = {file.path for file in result.checkpoint.files()}
    assert {".metadata", "metadata.json", "common.pt", "__0_0.distcp", "__1_0.distcp"} <= names
    result = fit(megatron, tmp_path, "run", workers=1, steps=STEPS + 2)
    torch.manual_seed(0)
    weight, expected = torch.randn(8, 8), {}
    momentum = torch.zeros_like(weight)
    for step in range(STEPS + 2):
        inputs = batch(step)
        residual = inputs @ weight.T - inputs.sum(1, keepdim=True)
        momentum = 0.9 * momentum + residual.T @ inputs / len(inputs)
        weight = weight - 0.05 * momentum
        expected[step] = residual.square().sum().item()
    assert history(result) == pytest.approx(expected, rel=1e-4)
