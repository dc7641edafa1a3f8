"""`load_state`."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Collection, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.checkpoint.state_dict_loader import load

from holdfast.checkpoint import Checkpoint
from holdfast.errors import DamagedCheckpointError, FormatError, StateError
from holdfast.torch.state.files import is_sharded_tensor
from holdfast.torch.state.optimizers import Restoration
from holdfast.torch.state.tree import Leaf, leaves
from holdfast.torch.state.values import decode, tensor_names
from holdfast.torch.state.writer import DIRECTORY, FORMAT_VERSION, VALUES

_NAMED = 5
_WHAT = {
    "module": "a module",
    "optimizer": "an optimizer",
    "stateful": "an object with a state_dict",
    "plain": "a plain value",
    "tensor": "a tensor",
}


def load_state(
    state: MutableMapping[str, Any],
    checkpoint: Checkpoint | str | os.PathLike[str],
    *,
    optional: Collection[str] = (),
) -> None:
    """Loads what `save_state` saved into a state of the same form, whatever the number of ranks was.

    Modules, optimizers and tensors are filled in place, each rank reading its own parts only; objects get
    `load_state_dict`; plain values are replaced in their dict or list. The state may have fewer keys than was saved: then only
    those are loaded. Ranks need not call it together, but for the old FSDP (`FullyShardedDataParallel`).

        >>> state = {"model": model, "optimizer": optimizer, "epoch": 0}
        >>> if checkpoint := get_checkpoint():
        ...     load_state(state, checkpoint)
        ...     first_epoch = state["epoch"] + 1

    Args:
        checkpoint: A checkpoint, or the directory that was saved into.
        optional: Keys of the state that stay as they are where they were not saved, `a/b` for nested ones: those of ranks that
            there were not, say.

    Raises:
        StateError: A key was not saved, or has another shape; the text names it. Nothing was loaded then.
        DamagedCheckpointError: A file is not what was reported.
        FormatError: There is no state in the checkpoint, or a newer version saved it.
    """
    found = leaves(state, "load_state")
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint.from_directory(checkpoint)
    if f"{DIRECTORY}/{VALUES}" not in {file.path for file in checkpoint.files()}:
        raise FormatError(f"There is no state in {checkpoint.path!r}: it was not made by save_state")
    with checkpoint.as_directory(include=[f"{DIRECTORY}/*"]) as directory:
        saved = _Saved(Path(directory) / DIRECTORY, str(checkpoint.path))
        targets = [_target(leaf, saved) for leaf in found if not _is_spared(leaf, saved, optional)]
        wanted = {name: tensor for target in targets for name, tensor in target.tensors.items()}
        saved.check(wanted)
        saved.read(wanted)
    for target in targets:
        target.finish(wanted)


class _Saved:
    """What lies in a checkpoint.

    Raises:
        FormatError: No state, or one that this version cannot read.
        StateError: Files of some rank are missing.
    """

    def __init__(self, directory: Path, where: str) -> None:
        self.where = where
        try:
            document = json.loads((directory / VALUES).read_text())
        except ValueError as error:
            raise FormatError(f"The state in {where!r} cannot be read: {VALUES}: {error}") from error
        version = document.get("format_version", 1)
        if version > FORMAT_VERSION:
            raise FormatError(f"The state in {where!r} has format {version}; install a newer Holdfast to read it")
        if missing := [name for name in document["files"] if not (directory / name).exists()]:
            raise StateError(
                f"The state in {where!r} lacks {', '.join(missing)}; every rank must report the directory that it saved into"
            )
        self.leaves: dict[str, dict[str, Any]] = document["leaves"]
        _check_files(directory, document["files"], where)
        self._reader = _Reader(str(directory), document["files"])
        self._metadata = self._reader.read_metadata()

    @property
    def names(self) -> dict[str, Any]:
        """Every tensor's shape and type, by its name."""
        return self._metadata.state_dict_metadata

    def leaf(self, path: str, kind: str) -> Any:
        """What was saved of a leaf that is no tensor.

        Raises:
            StateError: Nothing, or a leaf of another kind.
        """
        leaf = self.leaves.get(path)
        if leaf is not None and leaf["kind"] == kind:
            return leaf["value"]
        if leaf is not None:
            raise StateError(f"load_state: {path!r} is {_WHAT[kind]} here, and was saved as {_WHAT[leaf['kind']]}")
        inside = [name for name in (*self.names, *self.leaves) if name == path or name.startswith(f"{path}/")]
        if inside:
            raise StateError(
                f"load_state: {path!r} is {_WHAT[kind]} here, and was saved as {_listed(inside)}; pass what these can be loaded into"
            )
        raise StateError(
            f"load_state: {path!r} is not in the state of {self.where!r}, which has {_listed(list(self.leaves))}; leave it out, or "
            f"name it in load_state(..., optional=[{path!r}])"
        )

    def empty(self, name: str) -> torch.Tensor:
        """A tensor of the form of a saved one."""
        form = self.names.get(name)
        if form is None:
            raise FormatError(f"The state in {self.where!r} lacks the tensor {name!r}")
        return torch.empty(form.size, dtype=form.properties.dtype)

    def check(self, wanted: dict[str, Any]) -> None:
        """Refuses tensors that were not saved, or in another shape.

        Raises:
            StateError: There are some.
        """
        plain = {name: tensor for name, tensor in wanted.items() if not is_sharded_tensor(tensor)}
        if unreal := [name for name, tensor in plain.items() if tensor.is_meta]:
            raise StateError(
                f"load_state: {_listed(unreal)} on the meta device; give memory first: module.to_empty(device=...)"
            )
        if missing := [name for name in wanted if name not in self.names]:
            raise StateError(
                f"load_state: {self.where!r} has no {_listed(missing)}; to load a part of a module pass a dict of that part, "
                "{key: tensor for key, tensor in module.state_dict().items() if ...}"
            )
        different = [
            f"{name!r} is {tuple(tensor.size())} here and {tuple(self.names[name].size)} there"
            for name, tensor in wanted.items()
            if tuple(tensor.size()) != tuple(self.names[name].size)
        ]
        different += [
            f"{name!r} is {_type_text(tensor)} here and {_type_text(self.names[name].properties)} there"
            for name, tensor in plain.items()
            if name in self.names and _loses(self.names[name].properties.dtype, tensor.dtype)
        ]
        if different:
            more = f"; and {len(different) - _NAMED} more" if len(different) > _NAMED else ""
            raise StateError(
                f"load_state: other shapes or types than in {self.where!r}: {'; '.join(different[:_NAMED])}{more}"
            )

    def read(self, wanted: dict[str, Any]) -> None:
        """Fills the tensors."""
        if not wanted:
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            planner = DefaultLoadPlanner(flatten_state_dict=False)
            try:
                load(wanted, storage_reader=self._reader, planner=planner, no_dist=True)
            except CheckpointException as error:
                cause = next(iter(error.failures.values()))[0]
                if not isinstance(cause, Exception):  # Ctrl-C, or the end of an attempt
                    raise cause from None
                raise DamagedCheckpointError(f"The state in {self.where!r} cannot be read: {cause}") from error


class _Reader(HuggingFaceStorageReader):
    """Torch's reader, which looks at the files' headers once, and at those of this state alone."""

    def __init__(self, path: str, files: Sequence[str]) -> None:
        super().__init__(path)
        self._known: Metadata | None = None
        self.fs = _Listed([f"{path}/{name}" for name in files])

    def read_metadata(self) -> Metadata:
        """The tensors in all files."""
        if self._known is None:
            self._known = super().read_metadata()
        return self._known


class _Listed(FileSystem):
    """A directory that holds no more than it should."""

    def __init__(self, files: list[str]) -> None:
        super().__init__()
        self._files = files

    def ls(self, path: str | os.PathLike[str]) -> list[str]:
        """The files."""
        return self._files


class _Target:
    """A leaf about to be loaded.

    Attributes:
        tensors: What is to be read, by name; filled in place.
    """

    def __init__(self, leaf: Leaf) -> None:
        self.leaf = leaf
        self.tensors: dict[str, Any] = {}

    def finish(self, loaded: dict[str, Any]) -> None:
        """Brings what was read into the leaf, where filling its tensors has not done so."""


class _TensorTarget(_Target):
    def __init__(self, leaf: Leaf) -> None:
        super().__init__(leaf)
        self.tensors[leaf.path] = leaf.value.detach()


class _ModuleTarget(_Target):
    def __init__(self, leaf: Leaf, saved: _Saved) -> None:
        super().__init__(leaf)
        self._plain = saved.leaf(leaf.path, "module")
        self._state = get_model_state_dict(leaf.value)
        for key, value in self._state.items():
            if isinstance(value, torch.Tensor):
                self.tensors[f"{leaf.path}/{key}"] = value
            elif key not in self._plain:
                raise StateError(f"load_state: {saved.where!r} has no {f'{leaf.path}/{key}'!r}")
        for name in tensor_names(list(self._plain.values())):
            self.tensors[name] = saved.empty(name)

    def finish(self, loaded: dict[str, Any]) -> None:
        # Also where the tensors are the parameters themselves: a module may give copies, and may have hooks.
        for key, value in self._state.items():
            name = f"{self.leaf.path}/{key}"
            if isinstance(value, torch.Tensor):
                self._state[key] = loaded[name]
            else:
                self._state[key] = decode(self._plain[key], name, loaded.__getitem__)
        set_model_state_dict(self.leaf.value, self._state)


class _OptimizerTarget(_Target):
    def __init__(self, leaf: Leaf, saved: _Saved) -> None:
        super().__init__(leaf)
        assert leaf.module is not None
        self._plain = saved.leaf(leaf.path, "optimizer")
        inside = set(tensor_names(list(self._plain.values())))
        prefix = f"{leaf.path}/"
        own = {name: form for name, form in saved.names.items() if name.startswith(prefix) and name not in inside}
        flat = {name.removeprefix(prefix): form for name, form in own.items()}
        self._restoration = Restoration(leaf.module, leaf.value, flat)
        self.tensors = {f"{prefix}{key}": tensor for key, tensor in self._restoration.tensors.items()}
        self.tensors |= {name: saved.empty(name) for name in inside}

    def finish(self, loaded: dict[str, Any]) -> None:
        prefix = f"{self.leaf.path}/"
        values = {key: decode(node, prefix + key, loaded.__getitem__) for key, node in self._plain.items()}
        values |= {key: loaded[prefix + key] for key in self._restoration.tensors}
        self._restoration.finish(values)


class _ValueTarget(_Target):
    """A plain value, or an object with `load_state_dict`."""

    def __init__(self, leaf: Leaf, saved: _Saved) -> None:
        super().__init__(leaf)
        self._value = saved.leaf(leaf.path, leaf.kind)
        for name in tensor_names(self._value):
            self.tensors[name] = saved.empty(name)

    def finish(self, loaded: dict[str, Any]) -> None:
        leaf = self.leaf
        value = decode(self._value, leaf.path, loaded.__getitem__)
        if leaf.kind == "stateful":
            leaf.value.load_state_dict(value)
        elif leaf.container is not None:
            leaf.container[leaf.key] = value


def _target(leaf: Leaf, saved: _Saved) -> _Target:
    match leaf.kind:
        case "module":
            return _ModuleTarget(leaf, saved)
        case "optimizer":
            return _OptimizerTarget(leaf, saved)
        case "tensor":
            return _TensorTarget(leaf)
        case _:
            return _ValueTarget(leaf, saved)


def _loses(saved: torch.dtype, wanted: torch.dtype) -> bool:
    """Whether numbers would become something else than numbers of less precision."""
    return (saved.is_complex and not wanted.is_complex) or (
        saved.is_floating_point and not wanted.is_floating_point and not wanted.is_complex
    )


def _type_text(typed: Any) -> str:
    return str(typed.dtype).removeprefix("torch.")


def _is_spared(leaf: Leaf, saved: _Saved, optional: Collection[str]) -> bool:
    """Whether a leaf may stay as it is, and was not saved."""
    parts = leaf.path.split("/")
    if not any("/".join(parts[:end]) in optional for end in range(1, len(parts) + 1)):
        return False
    return not any(name == leaf.path or name.startswith(f"{leaf.path}/") for name in (*saved.leaves, *saved.names))


def _check_files(directory: Path, files: Sequence[str], where: str) -> None:
    """Refuses what is no file of tensors, and memory that by now holds something else than what was saved here."""
    for name in files:
        path = directory / name
        try:
            with safe_open(path, framework="pt"):
                pass
        except Exception as error:
            raise DamagedCheckpointError(f"The state in {where!r} is damaged: {name}: {error}") from error
        if path.is_symlink() and path.lstat().st_mtime_ns != path.stat().st_mtime_ns:
            raise StateError(f"load_state: {where!r} was saved into memory that is used for something else by now")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown or "nothing"
