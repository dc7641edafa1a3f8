"""A nested state taken apart: what each leaf is, and the name that its tensors are stored under."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, MutableSequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from holdfast.errors import StateError

Kind = Literal["module", "optimizer", "stateful", "tensor", "plain"]


@dataclass(frozen=True)
class Leaf:
    """One thing in the state.

    Attributes:
        path: The keys that lead to it, joined by `/`; its tensors' names begin with it.
        container: What holds it, where it can be replaced; else None.
        key: Its key or index there.
        module: Of an optimizer, the module that it trains.
    """

    path: str
    kind: Kind
    value: Any
    container: MutableMapping[Any, Any] | MutableSequence[Any] | None
    key: Any
    module: nn.Module | None = None


def leaves(state: Any, caller: str) -> list[Leaf]:
    """The leaves of a state, in its order.

    A dict or list is taken apart where a module, an optimizer, a tensor or the like is in it; else it is one plain value.

    Raises:
        StateError: The state is no dict, or two of its keys have one name.
    """
    if not isinstance(state, MutableMapping):
        raise StateError(f"{caller} takes a dict such as {{'model': model, 'epoch': 3}}, not a {type(state).__name__}")
    found = list(_walk(state, "", caller))
    seen: set[str] = set()
    for leaf in found:
        if leaf.path in seen:
            raise StateError(f"{caller}: two keys of the state are called {leaf.path!r}")
        seen.add(leaf.path)
    modules = [leaf.value for leaf in found if leaf.kind == "module"]
    return [_with_module(leaf, modules, caller) if leaf.kind == "optimizer" else leaf for leaf in found]


def _walk(container: Any, prefix: str, caller: str) -> Iterator[Leaf]:
    items = container.items() if isinstance(container, MutableMapping) else enumerate(container)
    for key, value in list(items):
        path = prefix + str(key).replace("%", "%25").replace("/", "%2F")
        kind = _kind(value)
        if kind == "plain" and _is_group(value):
            yield from _walk(value, f"{path}/", caller)
            continue
        is_changeable = isinstance(container, MutableMapping | MutableSequence)
        if kind == "plain" and not is_changeable:
            raise StateError(
                f"{caller}: {path!r} is a plain value in a tuple, which nothing can be loaded into; use a list"
            )
        yield Leaf(path, kind, value, container if is_changeable else None, key)


def _kind(value: Any) -> Kind:
    if isinstance(value, nn.Module):
        return "module"
    if isinstance(value, torch.optim.Optimizer):
        return "optimizer"
    if isinstance(value, torch.Tensor):
        return "tensor"
    if callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None)):
        return "stateful"
    return "plain"


def _is_group(value: Any) -> bool:
    if isinstance(value, MutableMapping):
        inside = list(value.values())
    elif isinstance(value, list | tuple):
        inside = list(value)
    else:
        return False
    return any(_kind(item) != "plain" or _is_group(item) for item in inside)


def _with_module(leaf: Leaf, modules: list[nn.Module], caller: str) -> Leaf:
    own = {id(parameter) for group in leaf.value.param_groups for parameter in group["params"]}
    for module in modules:
        if own <= {id(parameter) for parameter in module.parameters()}:
            return Leaf(leaf.path, leaf.kind, leaf.value, leaf.container, leaf.key, module)
    raise StateError(
        f"{caller}: the optimizer {leaf.path!r} trains parameters that no single module in the state has; pass the model beside "
        "it, as {'model': model, 'optimizer': optimizer}, several as one nn.ModuleDict: its names tell which value belongs to "
        "which parameter"
    )
