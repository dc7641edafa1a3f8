"""Which rank writes what: `torch.distributed.checkpoint` plans it, once for every state of the same form."""

from __future__ import annotations

import dataclasses
import functools
import uuid
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor

from holdfast.torch.state.files import SUFFIX, FileLayout, Piece, is_sharded_tensor, lay_out
from holdfast.torch.state.together import Together

# Whoever saves several states in turn (the model each time, its average at times) has a plan for each.
_MOST_PLANS = 4


@dataclass(frozen=True)
class PlannedFile:
    """A file that this rank writes, and what goes into it.

    Attributes:
        items: By the names of the tensors.
    """

    name: str
    layout: FileLayout
    items: Mapping[str, WriteItem]


@dataclass(frozen=True)
class Plan:
    """What this rank writes.

    Attributes:
        id: The same on all ranks that planned together.
        items: The pieces.
    """

    id: str
    rank: int
    items: Sequence[WriteItem]

    @functools.cached_property
    def files(self) -> list[PlannedFile]:
        """The files that they go into."""
        return [_planned(self.rank, number, items) for number, items in enumerate(_by_file(self.items))]


Form = tuple[Any, ...]
_plans: OrderedDict[Form, Plan] = OrderedDict()


def form_of(tensors: Mapping[str, torch.Tensor], loose: Collection[str], together: Together) -> Form:
    """All of a state that a plan depends on."""
    forms = tuple((name, *_form_of(tensor)) for name, tensor in tensors.items())
    return (together.rank, together.size, frozenset(loose), forms)


def known_plan(form: Form) -> Plan | None:
    """The plan of an earlier state of this form."""
    if form in _plans:
        _plans.move_to_end(form)
    return _plans.get(form)


def plan_together(form: Form, tensors: Mapping[str, torch.Tensor], loose: Collection[str], together: Together) -> Plan:
    """This rank's part of a new plan, which is kept for states of this form; every rank must call it.

    Args:
        tensors: What this rank has, by name.
        loose: The names of tensors that may differ from rank to rank although all have them, such as the running means of
            DDP: the lowest rank's are written, so that they fit each other. What else several ranks have is equal, and
            torch divides it among them.

    Raises:
        StateError: It cannot be planned.
    """
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(dict(tensors), is_coordinator=together.rank == 0)

    def local_plan() -> SavePlan:
        return dataclasses.replace(planner.create_local_plan(), planner_data=frozenset(loose))

    def all_plans(local_plans: list[SavePlan]) -> list[tuple[str, SavePlan]]:
        plans, _ = planner.create_global_plan(_without_copies(local_plans))
        plan_id = uuid.uuid4().hex
        return [(plan_id, dataclasses.replace(plan, planner_data=None)) for plan in plans]

    plan_id, mine = together.step(local_plan, all_plans)
    plan = _plans[form] = Plan(plan_id, together.rank, mine.items)
    _plans.move_to_end(form)
    if len(_plans) > _MOST_PLANS:
        _plans.popitem(last=False)
    return plan


def resolver(tensors: Mapping[str, torch.Tensor]) -> Callable[[WriteItem], torch.Tensor]:
    """Finds, for an item of a plan, this rank's part of the tensor."""
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(dict(tensors))

    def resolve(item: WriteItem) -> torch.Tensor:
        tensor = planner.resolve_data(item)
        assert isinstance(tensor, torch.Tensor)
        return tensor.detach().resolve_conj().resolve_neg()

    return resolve


def _form_of(tensor: torch.Tensor) -> Form:
    if is_sharded_tensor(tensor):
        return (repr(tensor.metadata()),)  # type: ignore[attr-defined]
    if isinstance(tensor, DTensor):
        return (tensor.shape, tensor.dtype, tensor.device_mesh, tuple(tensor.placements))
    return (tensor.shape, tensor.dtype)


def _without_copies(plans: Sequence[SavePlan]) -> list[SavePlan]:
    """The plans without what a lower rank writes of the loose tensors."""
    seen: set[str] = set()
    left = []
    for plan in plans:
        # What is sharded is whole only with every rank's part of it.
        loose = {item.index.fqn for item in plan.items if item.type is WriteItemType.TENSOR} & plan.planner_data
        items = [item for item in plan.items if item.index.fqn not in loose or item.index.fqn not in seen]
        seen |= loose
        left.append(dataclasses.replace(plan, items=items))
    return left


def _by_file(items: Sequence[WriteItem]) -> list[list[WriteItem]]:
    """The items divided so that no file has two pieces of one tensor, which the format cannot tell apart."""
    files: list[list[WriteItem]] = []
    times: dict[str, int] = {}
    for item in items:
        number = times.get(item.index.fqn, 0)
        times[item.index.fqn] = number + 1
        if number == len(files):
            files.append([])
        files[number].append(item)
    return files


def _planned(rank: int, number: int, items: Sequence[WriteItem]) -> PlannedFile:
    name = f"rank-{rank:05d}{f'-{number}' if number else ''}{SUFFIX}"
    return PlannedFile(name, lay_out([_piece(item) for item in items]), {item.index.fqn: item for item in items})


def _piece(item: WriteItem) -> Piece:
    data = item.tensor_data
    if item.type is WriteItemType.BYTE_IO or data is None:
        raise TypeError(f"{item.index.fqn!r} is no tensor")
    return Piece(item.index.fqn, tuple(data.chunk.sizes), tuple(data.chunk.offsets), data.properties.dtype)
