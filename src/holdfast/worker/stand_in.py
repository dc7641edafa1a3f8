"""Run by multiprocessing in place of the user's script; see `script`. Imported by nobody, or it could not be run."""

from holdfast.worker.script import find as __getattr__  # noqa: F401
from holdfast.worker.script import spec as _spec

__spec__ = _spec()
