"""What a worker's function returned or raised, read in the program that called `fit()`."""

from __future__ import annotations

import functools
import io
import pickle
import sys
from collections.abc import Callable
from typing import Any


def load(data: bytes) -> Any:
    """The object that cloudpickle made the bytes of.

    Classes of the script come by value, and cloudpickle knows which of this program's they are; but it would fill those anew, with what
    their attributes were in the worker. They stay as they are here.

    Raises:
        Exception: Whatever a class of the user's raises when it is unpickled.
    """
    return _Reader(io.BytesIO(data)).load()


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        # What fills a class, by cloudpickle's own name for it.
        if name == "_class_setstate" and module.startswith("cloudpickle"):
            return functools.partial(_fill_unless_own, found)
        return found


def _fill_unless_own(fill: Callable[[type, Any], type], made: type, state: Any) -> type:
    own: Any = sys.modules.get(made.__module__) if made.__module__ == "__main__" else None
    for part in made.__qualname__.split("."):
        own = getattr(own, part, None)
    return made if own is made else fill(made, state)
