"""What is refused before a worker starts, and what an import costs."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

import holdfast.torch
from holdfast import ConfigurationError, ScalingConfig
from holdfast.torch import TorchConfig, TorchTrainer


def test_defaults() -> None:
    config = TorchConfig()
    assert (config.backend, config.init_method, config.timeout_s) == (None, "env", 1800)
    assert config.share_gpus


@pytest.mark.parametrize(
    "wrong", [{"backend": ""}, {"backend": 3}, {"init_method": "file"}, {"timeout_s": 0}, {"timeout_s": "1"}]
)
def test_values_that_cannot_work(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=f"TorchConfig.{next(iter(wrong))}"):
        TorchConfig(**wrong)  # type: ignore[arg-type]


def test_trainer_refuses_what_is_no_torch_config() -> None:
    with pytest.raises(ConfigurationError, match="torch_config must be a TorchConfig"):
        TorchTrainer(print, torch_config={"backend": "gloo"})  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="scaling_config must be a ScalingConfig"):
        TorchTrainer(print, scaling_config=2)  # type: ignore[arg-type]


def test_trainer_tells_its_workers_how_many_gpus_are_theirs() -> None:
    scaling = ScalingConfig(num_workers=2, use_gpu=True, resources_per_worker={"GPU": 3})
    assert TorchTrainer(print, scaling_config=scaling).backend_config.gpus_per_worker == 3  # type: ignore[attr-defined]
    assert TorchTrainer(print).backend_config.gpus_per_worker == 0  # type: ignore[attr-defined]


def test_without_torch_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name, *rest))
    with pytest.raises(ImportError, match=r"pip install holdfast\[torch\]"):
        TorchTrainer(print)


def test_importing_the_package_imports_no_torch() -> None:
    check = "import holdfast.torch, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False, timeout=280).returncode == 0


def test_every_public_name_is_there_and_no_other() -> None:
    assert holdfast.torch.__all__ == sorted(holdfast.torch.__all__)
    assert set(holdfast.torch._LAZY) <= set(holdfast.torch.__all__) <= set(dir(holdfast.torch))
    for name in holdfast.torch.__all__:
        assert getattr(holdfast.torch, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'prepare'"):
        holdfast.torch.prepare  # noqa: B018


def test_what_is_preloaded_exists() -> None:
    for name in TorchConfig().preload():
        assert importlib.util.find_spec(name), name
