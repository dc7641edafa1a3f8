"""Without workers the function runs in the user's own program, whose process group and variables stay as they are."""

from __future__ import annotations

import os

import pytest

dist = pytest.importorskip("torch.distributed")

from holdfast import RunConfig, ScalingConfig  # noqa: E402
from holdfast.torch import TorchTrainer  # noqa: E402
from holdfast.torch.group import _by_device  # noqa: E402


def fit(tmp_path):
    return TorchTrainer(
        lambda: dist.get_world_size(),
        scaling_config=ScalingConfig(num_workers=0),
        run_config=RunConfig(name="run", storage_path=str(tmp_path), progress="quiet"),
    ).fit()


def test_a_group_of_ones_own_outlives_the_run(tmp_path):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert fit(tmp_path).return_value == 1
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


def test_nothing_is_left_in_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert fit(tmp_path).return_value == 1
    assert not dist.is_initialized()
    assert "GLOO_SOCKET_IFNAME" not in os.environ


@pytest.mark.parametrize(
    ("backend", "found"),
    [("gloo", {"": "gloo"}), ("cpu:gloo,cuda:nccl", {"cpu": "gloo", "cuda": "nccl"}), ("CPU:Gloo", {"cpu": "gloo"})],
)
def test_a_backend_for_each_device(backend, found):
    assert _by_device(backend) == found
