"""What a user configures, checked where it is written: a wrong value fails in the line that holds it."""

from __future__ import annotations

import enum
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from holdfast.checks import check_amount, check_choice, check_int, check_seconds, check_variables
from holdfast.errors import ConfigurationError
from holdfast.former import knows_former_arguments
from holdfast.secrecy import LeftOut, PickledWithoutSecrets, url_without_secrets, without_secrets
from holdfast.signatures import Keywords
from holdfast.urls import check_url, has_options, shown_url

if TYPE_CHECKING:
    from holdfast.controller.callbacks import UserCallback

_PLACEMENTS = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
# `memory` is what Ray places workers by; one machine has nothing to choose.
_RESOURCES = ("CPU", "GPU", "memory")
ScoreOrder = Literal["max", "min"]
SCORE_ORDERS: Final = get_args(ScoreOrder)
ProgressMode = Literal["auto", "live", "plain", "quiet"]
PROGRESS_MODES: Final = get_args(ProgressMode)


class CheckpointUploadMode(enum.Enum):
    """How `report` brings a checkpoint into the run's storage.

    ASYNC: `report` returns at once; the node stores what it was handed over while training goes on.
    SYNC: `report` returns on every rank once the checkpoint is committed.
    NO_UPLOAD: the checkpoint lies in the run's storage already; it is registered without copying.
    """

    ASYNC = "ASYNC"
    SYNC = "SYNC"
    NO_UPLOAD = "NO_UPLOAD"


class CheckpointConsistencyMode(enum.Enum):
    """What `get_all_reported_checkpoints` waits for.

    COMMITTED: every checkpoint reported so far is committed.
    VALIDATED: and those with a validation have its outcome.
    """

    COMMITTED = "COMMITTED"
    VALIDATED = "VALIDATED"


@knows_former_arguments
@dataclass(frozen=True, kw_only=False)
class ScalingConfig:
    """How many workers, and what each one gets.

    Attributes:
        num_workers: Processes that run the function; 0 runs it in this process.
            Of an elastic range `(min, max)` the local engine takes the upper end.
        use_gpu: One GPU a worker, by `CUDA_VISIBLE_DEVICES`.
        resources_per_worker: `{"GPU": n}` gives n whole GPUs a worker; `{"CPU": n}` its number of threads;
            `{"memory": n}` limits nothing.
        placement_strategy: For engines with several nodes; one node ignores it.
        accelerator_type: As `placement_strategy`.
        label_selector: As `placement_strategy`.
    """

    num_workers: int | tuple[int, int] = 1
    use_gpu: bool = False
    resources_per_worker: Mapping[str, float] | None = None
    placement_strategy: str = "PACK"
    accelerator_type: str | None = None
    label_selector: Any = None

    def __post_init__(self) -> None:
        if isinstance(self.num_workers, tuple):
            if len(self.num_workers) != 2:
                raise ConfigurationError(f"ScalingConfig.num_workers {self.num_workers!r} must be (min, max)")
            for value in self.num_workers:
                check_int("ScalingConfig.num_workers", value, 1, "an elastic range is (min, max) with min >= 1")
            if self.num_workers[0] > self.num_workers[1]:
                raise ConfigurationError(
                    f"ScalingConfig.num_workers {self.num_workers!r} has its minimum above its maximum"
                )
        else:
            check_int(
                "ScalingConfig.num_workers",
                self.num_workers,
                0,
                "0 runs the function in this process, N starts N workers",
            )
        if not isinstance(self.use_gpu, bool):
            raise ConfigurationError(f"ScalingConfig.use_gpu must be True or False, not {self.use_gpu!r}")
        check_choice("ScalingConfig.placement_strategy", self.placement_strategy, _PLACEMENTS)
        if self.resources_per_worker is not None and not isinstance(self.resources_per_worker, Mapping):
            raise ConfigurationError(
                f"ScalingConfig.resources_per_worker must be a dict such as {{'CPU': 2}}, not {self.resources_per_worker!r}"
            )
        for name, amount in (self.resources_per_worker or {}).items():
            if name not in _RESOURCES:
                # As Ray's other arguments call them; by letters a TPU is near a GPU.
                plain = str(name).lower().removeprefix("num_").removesuffix("s")
                meant = next((each for each in _RESOURCES if each.lower() == plain), None)
                raise ConfigurationError(
                    f"ScalingConfig.resources_per_worker names {name!r}, which "
                    + (f"means nothing here; write {meant!r}" if meant else "one machine cannot honour; leave it out")
                )
            check_amount(f"ScalingConfig.resources_per_worker[{name!r}]", amount)
        gpus = (self.resources_per_worker or {}).get("GPU")
        if gpus is not None and gpus > 0 and not self.use_gpu:
            raise ConfigurationError(
                f"ScalingConfig.resources_per_worker asks for {gpus} GPU a worker but use_gpu is False; set use_gpu=True"
            )
        if gpus is not None and gpus != int(gpus):
            raise ConfigurationError(f"ScalingConfig.resources_per_worker['GPU'] must be whole GPUs, not {gpus!r}")

    @property
    def gpus_per_worker(self) -> int:
        """Whole GPUs that each worker gets."""
        if not self.use_gpu:
            return 0
        return int((self.resources_per_worker or {}).get("GPU", 1))


@knows_former_arguments
@dataclass(frozen=True)
class CheckpointConfig:
    """Which checkpoints are kept.

    Attributes:
        num_to_keep: The best K by score (the newest K without a score attribute), besides the latest, which
            is always kept; None keeps all.
        checkpoint_score_attribute: The metric that ranks; nested metrics as `a/b`.
        checkpoint_score_order: `max` or `min`. A missing or NaN score ranks below every number in both.
    """

    num_to_keep: int | None = None
    checkpoint_score_attribute: str | None = None
    checkpoint_score_order: ScoreOrder = "max"

    def __post_init__(self) -> None:
        if self.num_to_keep is not None:
            check_int(
                "CheckpointConfig.num_to_keep",
                self.num_to_keep,
                1,
                "None keeps all; to keep nothing, report no checkpoint",
            )
        check_choice("CheckpointConfig.checkpoint_score_order", self.checkpoint_score_order, SCORE_ORDERS)
        attribute = self.checkpoint_score_attribute
        if attribute is not None and (not isinstance(attribute, str) or not attribute):
            raise ConfigurationError(
                f"CheckpointConfig.checkpoint_score_attribute must be a metric's name, not {attribute!r}"
            )


@knows_former_arguments
@dataclass(frozen=True)
class FailureConfig:
    """How often a run may fail before `fit()` gives up.

    Attributes:
        max_failures: Restarts after worker failures; -1 for no limit. Ranks that fail together count once. A mistake (`ConfigurationError`,
            `MetricsError`) that two attempts in a row make before any report ends the run.
        controller_failure_limit: How often in a row an attempt may fail to start for a reason that may pass by itself
            (storage that does not answer, processes that cannot be started), with growing pauses; -1 for five times.
        max_preemption_failures: Restarts after nodes were taken away; -1 for no limit. Accepted: an engine with one
            node knows of no preemption.
        preemption_grace_s: Seconds that workers get after a notice of preemption. Accepted likewise.
    """

    max_failures: int = 0
    controller_failure_limit: int = -1
    max_preemption_failures: int = -1
    preemption_grace_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("max_failures", "controller_failure_limit", "max_preemption_failures"):
            check_int(f"FailureConfig.{name}", getattr(self, name), -1, "-1 means no limit")
        check_seconds("FailureConfig.preemption_grace_s", self.preemption_grace_s)


@knows_former_arguments
@dataclass(frozen=True)
class RunConfig(PickledWithoutSecrets):
    """Where a run lies and how it is kept.

    It can be pickled; its credentials go along to processes that `multiprocessing` starts, and are left out of any other pickle, as are
    variables of `worker_runtime_env` whose names sound like secrets.

    Attributes:
        name: The run's directory below `storage_path`; generated where None. Fitting again with the same name
            resumes the run.
        storage_path: Where runs lie; `~/holdfast_results` where None.
        storage_filesystem: A file system object of fsspec or pyarrow, in which `storage_path` is a path.
        storage_options: What the URL's client, or fsspec's file system, is made with, beside the options in the URL: credentials,
            endpoint, …
        callbacks: `UserCallback`s, called in the driver.
        worker_runtime_env: `{"env_vars": {...}}`: environment variables for the workers.
        logging_config: Accepted for scripts that pass one; workers inherit Python's own logging defaults.
        durability: `background` commits at once and flushes to disk behind; `strict` makes `report` wait for it.
        progress: `auto` (a live line on a terminal, else plain lines), `live`, `plain`, or `quiet`. The environment
            variable `HOLDFAST_PROGRESS` overrides `auto`.
        stop_grace_s: Seconds between asking workers to stop (Ctrl-C, SIGTERM) and killing them.
        late_rank_warning_s: Seconds after which a rank that others wait for is named in a warning, with stacks.
        late_rank_timeout_s: Seconds after which that wait ends with an error; None for no limit.
        max_pending_checkpoints: How many `ASYNC` checkpoints may wait behind the one that is being stored; with more,
            `report` waits.
        max_pending_bytes: How many bytes of `ASYNC` checkpoints may be on their way, where it is more than one; None
            for no limit.
        on_upload_error: What follows when an `ASYNC` checkpoint cannot be stored: `raise` makes the next `report`
            raise it, or the attempt fail where none follows; `warn` only says so.
        restart_cache_bytes: How much of the newest checkpoint this machine keeps for a restart, where storage is remote: memory,
            or space on disk that files take which have been removed. It bounds each of these by itself: that checkpoint's files,
            those of each one on its way, and the checkpoint whose fetched copies stay. None for half of what is free; 0 keeps
            nothing.
    """

    name: str | None = None
    storage_path: str | os.PathLike[str] | None = None
    storage_filesystem: Any = None
    failure_config: FailureConfig = field(default_factory=FailureConfig)
    checkpoint_config: CheckpointConfig = field(default_factory=CheckpointConfig)
    callbacks: Sequence[UserCallback] | None = None
    worker_runtime_env: Mapping[str, Any] | None = None
    logging_config: Any = None
    durability: Literal["background", "strict"] = "background"
    progress: ProgressMode = "auto"
    stop_grace_s: float = 30.0
    late_rank_warning_s: float = 30.0
    late_rank_timeout_s: float | None = 1800.0
    max_pending_checkpoints: int = 1
    max_pending_bytes: int | None = None
    on_upload_error: Literal["raise", "warn"] = "raise"
    restart_cache_bytes: int | None = None
    storage_options: Mapping[str, Any] | None = None

    def __repr__(self) -> str:
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        if isinstance(self.storage_path, str):
            values["storage_path"] = shown_url(self.storage_path)
        if self.storage_options is not None:
            values["storage_options"] = dict.fromkeys(self.storage_options, ...)
        if self.worker_runtime_env is not None:
            # Where tokens for services are.
            values["worker_runtime_env"] = {
                name: dict.fromkeys(value, ...) if isinstance(value, Mapping) else value
                for name, value in self.worker_runtime_env.items()
            }
        if self.storage_filesystem is not None:
            # What the object says of itself may hold a secret.
            values["storage_filesystem"] = type(self.storage_filesystem)
        return f"RunConfig({', '.join(f'{name}={value!r}' for name, value in values.items())})"

    def _without_secrets(self) -> dict[str, Any]:
        from holdfast.stores.wrapped import holds_secrets

        state = dict(self.__dict__)
        if isinstance(self.storage_path, str):
            state["storage_path"] = url_without_secrets(self.storage_path)
        for name in ("storage_options", "worker_runtime_env"):
            if state[name] is not None:
                state[name] = without_secrets(state[name])
        if self.storage_filesystem is not None and holds_secrets(self.storage_filesystem):
            # Nothing in its place, and the path would be one of this machine.
            state["storage_filesystem"] = LeftOut()
        return state

    def __post_init__(self) -> None:
        from holdfast.persistence.layout import check_name

        if self.name is not None:
            check_name(self.name, "RunConfig.name")
        for value, kind, what in (
            (self.failure_config, FailureConfig, "failure_config"),
            (self.checkpoint_config, CheckpointConfig, "checkpoint_config"),
        ):
            # None is what scripts pass that compute their configs; it means the default.
            if value is None:
                object.__setattr__(self, what, kind())
            elif not isinstance(value, kind):
                raise ConfigurationError(f"RunConfig.{what} must be a {kind.__name__}, not {value!r}")
        check_choice("RunConfig.durability", self.durability, ("background", "strict"))
        check_choice("RunConfig.progress", self.progress, PROGRESS_MODES)
        if self.storage_path is not None and not isinstance(self.storage_path, str | os.PathLike):
            raise ConfigurationError(f"RunConfig.storage_path must be a path or URI, not {self.storage_path!r}")
        if isinstance(self.storage_path, str) and not self.storage_path:
            raise ConfigurationError("RunConfig.storage_path is empty; give a directory, or None for the default")
        check_url(self.storage_path)
        if "?" in (self.name or "") and has_options(self.storage_path) and self.storage_filesystem is None:
            raise ConfigurationError(
                f"RunConfig.name {self.name!r} holds '?', which in a URL begins its options: nobody could give the run's URL; leave it out"
            )
        if self.storage_filesystem is not None and self.storage_path is None:
            raise ConfigurationError("RunConfig.storage_filesystem needs a storage_path: the directory in it")
        if self.storage_options is not None and not isinstance(self.storage_options, Mapping):
            raise ConfigurationError(
                f"RunConfig.storage_options must be a dict of names to values, not {type(self.storage_options).__name__}"
            )
        if self.callbacks is not None and not isinstance(self.callbacks, Sequence):
            raise ConfigurationError(f"RunConfig.callbacks must be a list of callbacks, not {self.callbacks!r}")
        if self.worker_runtime_env is not None and not isinstance(self.worker_runtime_env, Mapping):
            raise ConfigurationError(f"RunConfig.worker_runtime_env must be a dict, not {self.worker_runtime_env!r}")
        check_variables("RunConfig.worker_runtime_env['env_vars']", (self.worker_runtime_env or {}).get("env_vars"))
        unknown = set(self.worker_runtime_env or {}) - {"env_vars"}
        if unknown:
            raise ConfigurationError(
                f"RunConfig.worker_runtime_env: {sorted(unknown)} cannot be honoured by local workers, which share this "
                "process's installation; only 'env_vars' can"
            )
        check_seconds("RunConfig.stop_grace_s", self.stop_grace_s)
        check_seconds("RunConfig.late_rank_warning_s", self.late_rank_warning_s)
        hint = "so many checkpoints wait while an earlier one is being stored"
        check_int("RunConfig.max_pending_checkpoints", self.max_pending_checkpoints, 0, hint)
        if self.max_pending_bytes is not None:
            check_int("RunConfig.max_pending_bytes", self.max_pending_bytes, 0, "None means no limit")
        if self.restart_cache_bytes is not None:
            hint = "0 keeps nothing, None half of what is free"
            check_int("RunConfig.restart_cache_bytes", self.restart_cache_bytes, 0, hint)
        check_choice("RunConfig.on_upload_error", self.on_upload_error, ("raise", "warn"))
        if self.late_rank_timeout_s is not None:
            check_seconds("RunConfig.late_rank_timeout_s", self.late_rank_timeout_s)


@dataclass(frozen=True)
class ValidationTaskConfig:
    """How one checkpoint is validated.

    Attributes:
        fn_kwargs: Keyword arguments for the validation function.
        timeout_s: Seconds it may take; None for no limit.
    """

    fn_kwargs: Mapping[str, Any] | None = None
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        kwargs = self.fn_kwargs
        if kwargs is not None and not (isinstance(kwargs, Mapping) and all(isinstance(key, str) for key in kwargs)):
            raise ConfigurationError(
                f"ValidationTaskConfig.fn_kwargs must be a dict of names to values, not {kwargs!r}"
            )
        if self.timeout_s is not None:
            check_seconds("ValidationTaskConfig.timeout_s", self.timeout_s)


@dataclass(frozen=True)
class ValidationConfig:
    """The function that validates checkpoints beside training, where `report(validation=...)` asks for it.

    It runs in a process of its own on the driver's node, one checkpoint after another, and is no worker: it has no rank and
    cannot report. It sees every GPU that the driver sees.

    Attributes:
        fn: `fn(checkpoint, **fn_kwargs) -> dict` of metrics, which join those that were reported with the checkpoint.
        task_config: What holds where the report says nothing else.
    """

    fn: Callable[..., Mapping[str, Any]]
    task_config: ValidationTaskConfig | None = None

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise ConfigurationError(f"ValidationConfig.fn must be a function, not {self.fn!r}")
        if inspect.iscoroutinefunction(self.fn) or inspect.isgeneratorfunction(self.fn):
            raise ConfigurationError(
                "ValidationConfig.fn must be a plain function: a coroutine or generator is not run"
            )
        if self.task_config is not None and not isinstance(self.task_config, ValidationTaskConfig):
            raise ConfigurationError(
                f"ValidationConfig.task_config must be a ValidationTaskConfig, not {self.task_config!r}"
            )
        # What is missing a report may still give; what the function does not take it never will.
        self.keywords.check_known(self.given, "ValidationConfig.task_config: fn_kwargs")

    @property
    def keywords(self) -> Keywords:
        """What the function takes beside the checkpoint."""
        return Keywords.of(self.fn, "ValidationConfig.fn")

    @property
    def given(self) -> list[str]:
        """The names of the arguments that hold where a report gives none."""
        return list((self.task_config and self.task_config.fn_kwargs) or {})
