"""PyTorch: process groups, wrapped models and sharded data for training functions.

Importing this package imports no torch; the first function that needs it does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.former import no_such_name
from holdfast.torch.config import TorchConfig as TorchConfig
from holdfast.torch.trainer import TorchTrainer as TorchTrainer

if TYPE_CHECKING:
    from holdfast.torch.data import prepare_data_loader as prepare_data_loader
    from holdfast.torch.devices import get_device as get_device
    from holdfast.torch.devices import get_devices as get_devices
    from holdfast.torch.model import prepare_model as prepare_model
    from holdfast.torch.reproducibility import enable_reproducibility as enable_reproducibility
    from holdfast.torch.state import load_state as load_state
    from holdfast.torch.state import save_state as save_state

__all__ = [
    "TorchConfig",
    "TorchTrainer",
    "enable_reproducibility",
    "get_device",
    "get_devices",
    "load_state",
    "prepare_data_loader",
    "prepare_model",
    "save_state",
]

# Where the names lie whose modules import torch.
_LAZY = {
    "enable_reproducibility": "holdfast.torch.reproducibility",
    "get_device": "holdfast.torch.devices",
    "get_devices": "holdfast.torch.devices",
    "load_state": "holdfast.torch.state",
    "prepare_data_loader": "holdfast.torch.data",
    "prepare_model": "holdfast.torch.model",
    "save_state": "holdfast.torch.state",
}


def __getattr__(name: str) -> object:
    module = _LAZY.get(name)
    if module is None:
        raise no_such_name(__name__, name)
    import importlib

    from holdfast.torch.config import check_installed

    check_installed()
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
