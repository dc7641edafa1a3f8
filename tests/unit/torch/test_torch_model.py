"""`prepare_model` where no group is needed, and devices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from holdfast import ConfigurationError, OutsideWorkerError, ResourceError
from holdfast.torch import devices, get_device, get_devices, prepare_model

AsRank = Callable[..., None]


def test_a_single_worker_gets_the_bare_model(as_rank: AsRank) -> None:
    as_rank(0, 1)
    model = nn.Linear(2, 1)
    assert prepare_model(model) is model


def test_without_a_strategy_the_model_is_only_moved(as_rank: AsRank) -> None:
    as_rank(0, 2)
    model = nn.Linear(2, 1)
    assert prepare_model(model, parallel_strategy=None) is model
    assert prepare_model(model, move_to_device="meta", parallel_strategy=None).weight.is_meta  # type: ignore[union-attr]
    as_rank(0, 1)
    assert prepare_model(nn.Linear(2, 1), move_to_device=False).weight.device == torch.device("cpu")


def test_bad_calls(as_rank: AsRank) -> None:
    with pytest.raises(OutsideWorkerError):
        prepare_model(nn.Linear(2, 1))
    as_rank(0, 2)
    with pytest.raises(ConfigurationError, match="parallel_strategy='deepspeed'"):
        prepare_model(nn.Linear(2, 1), parallel_strategy="deepspeed")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="not function"):
        prepare_model(lambda x: x)  # type: ignore[arg-type]


def test_the_cpu_is_the_device_without_gpus(as_rank: AsRank) -> None:
    with pytest.raises(OutsideWorkerError):
        get_device()
    as_rank(1, 2)
    assert get_device() == torch.device("cpu")
    assert get_devices() == [torch.device("cpu")]


def test_gpus_are_dealt_by_local_rank(as_rank: AsRank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    as_rank(1, 2)
    assert get_devices() == [torch.device("cpu")]  # not asked for: the machine's GPUs are not this worker's
    devices.assign(1)
    assert get_devices() == [torch.device("cuda", 1)]
    devices.assign(2)
    assert get_devices() == [torch.device("cuda", 2), torch.device("cuda", 3)]
    assert get_device() == torch.device("cuda", 2)
    devices.assign(None)  # under a trainer that did not say
    assert get_devices() == [torch.device("cuda", 2), torch.device("cuda", 3)]
    devices.assign(3)
    with pytest.raises(ResourceError, match="GPU 3 to 5, but torch sees 4"):
        get_device()
