"""Which GPUs workers get."""

from __future__ import annotations

import pytest

from holdfast.config import ScalingConfig
from holdfast.engines.local.devices import check_gpus, gpu_variables, visible_gpus
from holdfast.errors import ResourceError


@pytest.mark.parametrize(
    ("text", "found"),
    [("0,1", ["0", "1"]), ("", []), ("-1", []), ("GPU-a, GPU-b", ["GPU-a", "GPU-b"]), ("2,-1,3", ["2"])],
)
def test_the_visible_devices_are_those_that_cuda_would_see(monkeypatch, text, found):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", text)
    assert visible_gpus() == found


def test_too_few_gpus_are_an_error_that_says_how_many(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    with pytest.raises(ResourceError, match="needs 4 GPUs, and this machine offers 3"):
        check_gpus(ScalingConfig(num_workers=4, use_gpu=True), 4)
    assert check_gpus(ScalingConfig(num_workers=3, use_gpu=True), 3) == ["0", "1", "2"]
    assert check_gpus(ScalingConfig(num_workers=9), 9) == []


def test_each_worker_gets_its_own_or_all_of_the_group(monkeypatch):
    gpus = ["4", "5", "6", "7"]
    assert gpu_variables(gpus, 1, 2, shared=False) == {"CUDA_VISIBLE_DEVICES": "6,7"}
    assert gpu_variables(gpus, 1, 2, shared=True) == {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}
    assert gpu_variables([], 1, 0, shared=False) == {"CUDA_VISIBLE_DEVICES": ""}
    assert gpu_variables(gpus, 1, 0, shared=True) == {"CUDA_VISIBLE_DEVICES": ""}
