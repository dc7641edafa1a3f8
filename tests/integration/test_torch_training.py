"""Real workers, real process groups: what they compute, and what they leave behind."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import holdfast as train
from holdfast import ConfigurationError, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from holdfast.torch import TorchConfig, TorchTrainer


def run(
    function: Callable[..., Any],
    tmp_path: Path,
    *,
    workers: int = 2,
    config: dict[str, Any] | None = None,
    torch_config: TorchConfig | None = None,
    max_failures: int = 0,
) -> train.Result:
    return TorchTrainer(
        function,
        train_loop_config=config,
        torch_config=torch_config,
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(
            storage_path=tmp_path, progress="quiet", failure_config=FailureConfig(max_failures=max_failures)
        ),
    ).fit()


def train_on_shares(strategy: str, workers: int) -> Callable[[], dict[str, list[float]]]:
    """A function whose result must not depend on the number of workers: equal shares of one batch."""

    def loop() -> dict[str, list[float]]:
        import torch
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        from holdfast.torch import prepare_model

        torch.manual_seed(7)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        inputs = torch.randn(8, 4)
        prepared: Any = prepare_model(model, parallel_strategy=strategy)
        assert (type(prepared).__name__ == "Sequential") == (workers == 1)
        optimizer = torch.optim.Adam(prepared.parameters(), lr=0.01)
        for _ in range(5):
            share = inputs.chunk(workers)[train.get_context().get_world_rank()]
            optimizer.zero_grad()
            prepared(share).square().mean().backward()
            optimizer.step()
        state = get_model_state_dict(prepared, options=StateDictOptions(full_state_dict=True))
        return {name: tensor.flatten().tolist() for name, tensor in state.items()}

    return loop


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_workers_learn_what_one_learns(strategy: str, tmp_path: Path) -> None:
    alone = run(train_on_shares(strategy, 1), tmp_path, workers=1).return_value
    together = run(train_on_shares(strategy, 2), tmp_path).return_value
    assert alone.keys() == together.keys() != set()
    for name, values in alone.items():
        assert together[name] == pytest.approx(values, abs=1e-6), name


def test_forked_workers_have_all_that_training_imports(tmp_path: Path) -> None:
    """The restart after a failure must not import for seconds: nothing heavy is loaded after the fork."""

    def loop() -> list[str]:
        import sys

        before = set(sys.modules)
        import torch
        from torch.utils.data import DataLoader, TensorDataset

        from holdfast.torch import prepare_data_loader, prepare_model

        model = prepare_model(torch.nn.Linear(4, 1))
        optimizer = torch.optim.AdamW(model.parameters())
        for (batch,) in prepare_data_loader(DataLoader(TensorDataset(torch.randn(8, 4)), batch_size=2, shuffle=True)):
            optimizer.zero_grad()
            model(batch).sum().backward()
            optimizer.step()
        torch.save(optimizer.state_dict(), os.devnull)
        return sorted(set(sys.modules) - before)

    assert len(run(loop, tmp_path).return_value) <= 3


def test_the_zygote_keeps_one_thread_and_workers_obey_their_number(tmp_path: Path) -> None:
    # The zygote imports what the driver has imported, and with pandas comes pyarrow.
    import pandas  # noqa: F401

    def loop() -> tuple[int, int, str]:
        import psutil
        import torch

        return psutil.Process(os.getppid()).num_threads(), torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]

    zygote_threads, threads, wanted = run(loop, tmp_path).return_value
    assert zygote_threads == 1
    assert threads == int(wanted)


def test_data_loader_workers_of_forked_workers(tmp_path: Path) -> None:
    def loop() -> list[int]:
        import torch
        import torch.distributed as dist
        from torch.utils.data import DataLoader, TensorDataset

        from holdfast.torch import prepare_data_loader

        loader = DataLoader(TensorDataset(torch.arange(40)), batch_size=4, shuffle=True, num_workers=2)
        mine = torch.cat([batch for (batch,) in prepare_data_loader(loader)])
        everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, mine)
        return sorted(torch.cat(everyone).tolist())

    assert run(loop, tmp_path).return_value == list(range(40))


def test_siblings_and_attempts_draw_different_numbers(tmp_path: Path) -> None:
    def loop() -> list[float]:
        import torch
        import torch.distributed as dist

        drawn = torch.rand(1)
        everyone = [torch.empty(1) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, drawn)
        return [tensor.item() for tensor in everyone]

    numbers = run(loop, tmp_path).return_value + run(loop, tmp_path).return_value
    assert len(set(numbers)) == 4


def test_reproducibility(tmp_path: Path) -> None:
    def loop() -> list[float]:
        import random

        import numpy as np
        import torch

        from holdfast.torch import enable_reproducibility, prepare_model

        enable_reproducibility(seed=5)
        model = prepare_model(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5)))
        return [*model(torch.randn(1, 4)).flatten().tolist(), random.random(), float(np.random.rand())]

    assert run(loop, tmp_path).return_value == run(loop, tmp_path).return_value


def test_the_rendezvous_is_open_to_this_machine_only(tmp_path: Path) -> None:
    def loop() -> list[tuple[str, int]]:
        import psutil

        own = psutil.Process().net_connections("inet")
        return [tuple(one.laddr) for one in own if one.status == psutil.CONN_LISTEN] + [
            ("MASTER", int(os.environ["MASTER_PORT"]))
        ]

    *listening, (_, port) = run(loop, tmp_path).return_value
    assert ("127.0.0.1", port) in listening
    assert {address for address, _ in listening} == {"127.0.0.1"}


def test_functions_that_return_at_once_do_not_fail_those_that_still_connect(tmp_path: Path) -> None:
    for _ in range(5):
        assert run(lambda: "done", tmp_path, workers=8).return_value == "done"


def test_a_model_that_outlives_its_group_hangs_nobody(tmp_path: Path) -> None:
    """Without a reference of ours the DDP model takes gloo's threads down with it, and waits for them for ever."""

    def loop() -> None:
        import torch
        import torch.distributed as dist

        from holdfast.torch import prepare_model

        model = prepare_model(torch.nn.Linear(4, 1))
        for _ in range(3):
            model(torch.randn(4, 4)).sum().backward()
        dist.destroy_process_group()  # as scripts for torchrun do

    for _ in range(10):
        run(loop, tmp_path)


def test_a_collective_that_a_rank_never_joins_ends_in_time(tmp_path: Path) -> None:
    def loop() -> None:
        import torch
        import torch.distributed as dist

        if train.get_context().get_world_rank() == 0:
            dist.all_reduce(torch.ones(1))
        else:
            train.collective.barrier()

    with pytest.raises(WorkerGroupError, match="rank 0"):
        run(loop, tmp_path, torch_config=TorchConfig(timeout_s=3))  # also for the group to form


def test_a_backend_that_this_torch_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkerGroupError) as caught:
        run(lambda: None, tmp_path, torch_config=TorchConfig(backend="quantum"))
    failure = next(iter(caught.value.worker_failures.values()))
    assert isinstance(failure, ConfigurationError)
    assert "'quantum' is not in this torch" in str(failure)


def test_the_tcp_method_forms_a_group_too(tmp_path: Path) -> None:
    def loop() -> int:
        import torch.distributed as dist

        return dist.get_world_size()

    assert run(loop, tmp_path, torch_config=TorchConfig(backend="gloo", init_method="tcp")).return_value == 2


def test_a_single_worker_has_a_group(tmp_path: Path) -> None:
    def loop() -> tuple[int, str]:
        import torch.distributed as dist

        return dist.get_world_size(), dist.get_backend()

    assert run(loop, tmp_path, workers=1).return_value == (1, "gloo")


def test_in_process_the_program_is_left_as_it_was(tmp_path: Path) -> None:
    def loop() -> float:
        assert dist.is_initialized()
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 1))
        model(torch.ones(1, 2)).sum().backward()
        return torch.rand(1).item()

    def failing() -> None:
        raise ValueError("on purpose")

    before = set(threading.enumerate())
    torch.manual_seed(3)
    expected = torch.nn.Linear(2, 1), torch.rand(1).item()
    for _ in range(2):
        torch.manual_seed(3)
        # Not reseeded: it is the caller's own program.
        assert math.isclose(run(loop, tmp_path, workers=0).return_value, expected[1], rel_tol=1e-6)
        assert not dist.is_initialized()
    with pytest.raises(WorkerGroupError, match="on purpose"):
        run(failing, tmp_path, workers=0)
    assert not dist.is_initialized()
    started = set(threading.enumerate()) - before
    assert not [thread for thread in started if thread.name.startswith("holdfast")]
