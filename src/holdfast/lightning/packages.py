"""Lightning is two packages with the same classes, and a trainer takes only its own: which one, is found out here."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Union

from holdfast.errors import ConfigurationError
from holdfast.torch.lightning import PACKAGES

_FABRICS = {"lightning.pytorch": "lightning.fabric", "pytorch_lightning": "lightning_fabric"}
_OLDEST = (2, 6)
_NEWEST = (2, 6)

_LOG = logging.getLogger("holdfast")

# From Lightning's packages, those of the process, the bases of a class.
Bases = Callable[[Sequence[ModuleType]], tuple[type, ...]]


def packages_in_use() -> list[ModuleType]:
    """Those of the two that this process has imported; where it has none, the one that is installed.

    Raises:
        ImportError: None is.
    """
    imported = [sys.modules[name] for name in PACKAGES if name in sys.modules]
    if imported:
        return imported
    for name in PACKAGES:
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            return [importlib.import_module(name)]
    raise ImportError(
        "holdfast.lightning needs PyTorch Lightning. Install it with: pip install holdfast[lightning]", name="lightning"
    )


def package_of(trainer: object) -> ModuleType:
    """The package that a trainer's class, or a class that it derives from, lies in.

    Raises:
        ConfigurationError: It is no trainer of Lightning's.
    """
    for kind in type(trainer).__mro__:
        for name in PACKAGES:
            if kind.__name__ == "Trainer" and kind.__module__.startswith(f"{name}."):
                return sys.modules[name]
    raise ConfigurationError(f"a Trainer of lightning or pytorch_lightning is wanted, not {type(trainer).__name__}")


def report_class(packages: Sequence[ModuleType]) -> tuple[type, ...]:
    """The base of a callback; of both packages where both are imported, so that either trainer takes it for its own.

    Raises:
        ConfigurationError: One is too old: the callback looks into the loops, which are others there.
    """
    for package in packages:
        version = tuple(int(part) for part in package.__version__.split(".")[:2])
        if version < _OLDEST:
            raise ConfigurationError(
                f"RayTrainReportCallback needs {package.__name__} 2.6, and {package.__version__} is installed; "
                "pip install 'lightning>=2.6,<2.7', or pytorch-lightning alike"
            )
        if version > _NEWEST:
            _warn_of_newer(package.__name__, package.__version__)
    return tuple(package.Callback for package in packages)


@functools.cache
def _warn_of_newer(name: str, version: str) -> None:
    """Says it once in a process."""
    _LOG.warning(
        "RayTrainReportCallback looks into the loops of %s 2.6, and %s is installed, on which it was never tried; if training fails or "
        "a resumed epoch goes wrong, pip install 'lightning>=2.6,<2.7', or pytorch-lightning alike",
        name,
        version,
    )


def environment_class(packages: Sequence[ModuleType]) -> tuple[type, ...]:
    """The base of a cluster environment; of both packages where both are imported."""
    fabrics = [importlib.import_module(f"{_FABRICS[package.__name__]}.plugins.environments") for package in packages]
    return tuple(fabric.ClusterEnvironment for fabric in fabrics)


def strategy_class(name: str) -> Bases:
    """The base of a strategy, by its name in Lightning. Such classes hold state: there cannot be two."""

    def base(packages: Sequence[ModuleType]) -> tuple[type, ...]:
        used = packages if len(packages) == 1 else [package for package in packages if _is_built_on(package)]
        if len(used) != 1:
            names = " and ".join(package.__name__ for package in packages)
            raise ConfigurationError(
                f"{names} are both imported here, and each takes only strategies of its own; say which one the Trainer is of: "
                f"Ray{name}.of(pytorch_lightning)(...), or .of(lightning.pytorch)(...)"
            )
        return (getattr(used[0].strategies, name),)

    return base


def _is_built_on(package: ModuleType) -> bool:
    """Whether there is a model on top of it. What is only imported may be some other library's, or be loaded in case it is needed."""
    return any(not kind.__module__.startswith(PACKAGES) for kind in package.LightningModule.__subclasses__())


class ByPackage:
    """A class of ours on top of one of Lightning's, which is known once the user's script has imported its package.

    Scripts import ours before theirs or after. So it is decided when an object is made, or a class derived from it. It is
    called, subclassed and asked by `isinstance` as a class is.

    Args:
        name: Its name in `holdfast.lightning`.
        bases: Lightning's classes that it derives from.
        own: What is ours of it; of the same name, which its methods show in errors.
    """

    def __init__(self, name: str, bases: Bases, own: type) -> None:
        self.__name__ = self.__qualname__ = name
        self.__module__ = "holdfast.lightning"
        self.__doc__ = own.__doc__
        self._bases = bases
        self._own = own
        self._classes: dict[tuple[type, ...], type] = {}

    def of(self, *packages: ModuleType) -> type:
        """The class for trainers of one package (`lightning.pytorch` or `pytorch_lightning`)."""
        used = [sys.modules[f"{each.__name__}.pytorch"] if each.__name__ == "lightning" else each for each in packages]
        bases = self._bases(used)
        if bases not in self._classes:
            names = {"__module__": self.__module__, "__doc__": self.__doc__, "__qualname__": self.__qualname__}
            self._classes[bases] = type(self.__name__, (self._own, *bases), names)
        return self._classes[bases]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """An object of the class for the package that this process uses."""
        return self.of(*packages_in_use())(*args, **kwargs)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (self.of(*packages_in_use()),)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, tuple(self._classes.values()))

    def __subclasscheck__(self, subclass: type) -> bool:
        return issubclass(subclass, tuple(self._classes.values()))

    def __or__(self, other: Any) -> Any:
        return Union[self, other]  # noqa: UP007 - which would ask this very method

    def __ror__(self, other: Any) -> Any:
        return Union[other, self]  # noqa: UP007 - as above

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # asked by pickle and others before there is anything
            raise AttributeError(name)
        return getattr(self._own, name)

    def __repr__(self) -> str:
        return f"<class '{self.__module__}.{self.__name__}'>"

    def __reduce__(self) -> str:
        return self.__name__
