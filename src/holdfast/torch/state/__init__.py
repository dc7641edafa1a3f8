"""Sharded state: what `save_state` writes and `load_state` reads, through `torch.distributed.checkpoint`."""

from __future__ import annotations

from holdfast.torch.state.load import load_state as load_state
from holdfast.torch.state.save import save_state as save_state

__all__ = ["load_state", "save_state"]
