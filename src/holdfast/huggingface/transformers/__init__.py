"""Transformers: its `Trainer` in a training function, its checkpoints in the run.

Importing this package imports no Transformers; the first use of a name that needs it does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holdfast.huggingface.transformers.callback import RayTrainReportCallback as RayTrainReportCallback
    from holdfast.huggingface.transformers.callback import ReportCallback as ReportCallback
    from holdfast.huggingface.transformers.prepare import prepare_trainer as prepare_trainer

__all__ = ["RayTrainReportCallback", "ReportCallback", "prepare_trainer"]

# Where the names lie whose modules import Transformers.
_LAZY = {
    "RayTrainReportCallback": "holdfast.huggingface.transformers.callback",
    "ReportCallback": "holdfast.huggingface.transformers.callback",
    "prepare_trainer": "holdfast.huggingface.transformers.prepare",
}


def __getattr__(name: str) -> object:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib
    import importlib.util

    for needed in ("torch", "transformers", "accelerate"):
        if importlib.util.find_spec(needed) is None:
            raise ImportError(
                f"holdfast.huggingface.transformers needs {needed}. Install it with: pip install holdfast[transformers]",
                name=needed,
            )
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
