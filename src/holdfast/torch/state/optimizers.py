"""An optimizer's state by the names of its parameters, so that it finds its way on another number of ranks.

Torch's own `get_optimizer_state_dict` does the same, and takes a step with gradients of zero where there is no state yet; that
changes what some optimizers do afterwards. It is used for the old FSDP alone, whose parameters are flat.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)

_STATE = "state"
_GROUPS = "param_groups"


def is_old_fsdp(module: nn.Module) -> bool:
    """Whether the old FSDP (`FullyShardedDataParallel`) is in it."""
    return any(isinstance(part, FullyShardedDataParallel) for part in module.modules())


def gather(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state, flat: `state.<parameter>.<key>` and `param_groups.<parameter>.<option>`.

    Args:
        module: Has all parameters of the optimizer.
    """
    if is_old_fsdp(module):
        return get_optimizer_state_dict(module, optimizer, options=FLAT)
    names = parameter_names(module)
    found: dict[str, Any] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            entry = optimizer.state.get(parameter, {})
            found.update((f"{_STATE}.{name}.{key}", value) for key, value in entry.items())
            found.update((f"{_GROUPS}.{name}.{key}", value) for key, value in group.items() if key != "params")
    return found


class Restoration:
    """An optimizer about to get what was saved of it.

    Attributes:
        tensors: Where what was saved is read into, by its flat name; nothing of it is the optimizer's yet.

    Args:
        saved: Shape and type of the tensors that were saved, by flat name.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
        self._module = module
        self._optimizer = optimizer
        self._is_old_fsdp = is_old_fsdp(module)
        if self._is_old_fsdp:
            template: Any = get_optimizer_state_dict(module, optimizer, options=FLAT)
            self._template: dict[str, Any] = template
            self.tensors: dict[str, torch.Tensor] = {
                key: value for key, value in self._template.items() if isinstance(value, torch.Tensor)
            }
            return
        self._names = parameter_names(module)
        self._known = set(self._names.values())
        parameters = {self._names[id(each)]: each for group in optimizer.param_groups for each in group["params"]}
        self.tensors = {}
        for key, form in saved.items():
            kind, _, rest = key.partition(".")
            name, _ = _split(rest, self._known)
            if kind in (_STATE, _GROUPS) and name in parameters:
                self.tensors[key] = _room_for(form, parameters[name])

    def finish(self, values: Mapping[str, Any]) -> None:
        """Gives the optimizer what was read.

        Args:
            values: The tensors, and what was saved beside them, by flat name.
        """
        if self._is_old_fsdp:
            # An option that this version of the optimizer has and the one that was saved had not stays as it is.
            flat: dict[str, Any] = {key: values.get(key, value) for key, value in self._template.items()}
            set_optimizer_state_dict(self._module, self._optimizer, flat, options=FLAT)
            return
        entries: dict[str, dict[str, dict[str, Any]]] = {_STATE: {}, _GROUPS: {}}
        for place, value in values.items():
            kind, _, rest = place.partition(".")
            name, key = _split(rest, self._known)
            if kind in entries:
                entries[kind].setdefault(name, {})[key] = value
        groups: list[dict[str, Any]] = []
        state: dict[int, dict[str, Any]] = {}
        number = 0
        for group in self._optimizer.param_groups:
            options = {key: value for key, value in group.items() if key != "params"}
            members = [self._names[id(parameter)] for parameter in group["params"]]
            if members:
                options |= entries[_GROUPS].get(members[0], {})
            groups.append({**options, "params": list(range(number, number + len(members)))})
            for name in members:
                if name in entries[_STATE]:
                    state[number] = entries[_STATE][name]
                number += 1
        whole: dict[str, Any] = {_STATE: state, _GROUPS: groups}
        self._optimizer.load_state_dict(whole)


def parameter_names(module: nn.Module) -> dict[int, str]:
    """The name of each parameter in the bare module, by its `id`: wrappers leave no trace."""
    return {id(parameter): _bare(module, name) for name, parameter in module.named_parameters()}


def _bare(module: nn.Module, name: str) -> str:
    parts = []
    at: Any = module
    for part in name.split("."):
        is_wrapper = isinstance(at, DistributedDataParallel) and part == "module"
        if not is_wrapper and part not in ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"):
            parts.append(part)
        at = getattr(at, part)
    return ".".join(parts)


def _split(rest: str, known: set[str]) -> tuple[str, str]:
    """The longest known name that `rest` begins with, and the key after it."""
    end = len(rest)
    while (end := rest.rfind(".", 0, end)) >= 0:
        if rest[:end] in known:
            return rest[:end], rest[end + 1 :]
    return "", rest


def _room_for(form: Any, parameter: torch.Tensor) -> torch.Tensor:
    """What is as large as the parameter is divided among ranks as it is."""
    if tuple(form.size) == tuple(parameter.size()):
        return torch.zeros_like(parameter.detach(), dtype=form.properties.dtype)
    return torch.empty(form.size, dtype=form.properties.dtype)
