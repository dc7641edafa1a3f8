"""The local engine: this machine is the only node, its workers are forked from a warm zygote."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from holdfast.config import ScalingConfig
from holdfast.controller.group import Engine, Listener, WorkerGroup
from holdfast.engines.local import launcher, wire
from holdfast.engines.local.devices import check_gpus, gpu_variables
from holdfast.engines.local.family import Family
from holdfast.engines.local.group import LocalGroup
from holdfast.engines.local.output import LineHandler, OutputPump
from holdfast.errors import WorkerStartError
from holdfast.persistence import layout
from holdfast.persistence.logs import Logs
from holdfast.worker import protocol

if TYPE_CHECKING:
    from holdfast.controller.reactor import Reactor
    from holdfast.stores.base import Store
    from holdfast.worker.backend import BackendConfig

# Frameworks that survive a fork and take long to import: where the driver has loaded one, so will the workers.
_FORKABLE = (
    "numpy",
    "scipy",
    "pandas",
    "sklearn",
    "torch",
    "lightning",
    "pytorch_lightning",
    "transformers",
    "transformers.trainer",  # `import transformers` loads next to nothing
    "accelerate",
)

_ADDRESS = "127.0.0.1"
_LOG = logging.getLogger("holdfast")


class LocalEngine(Engine):
    """Starts groups on this machine.

    Args:
        store: Where the workers' output is kept.
        on_line: Gets every line of it.
    """

    def __init__(self, scaling: ScalingConfig, backend: BackendConfig, store: Store, on_line: LineHandler) -> None:
        self._scaling = scaling
        self._backend = backend
        self._logs = Logs(store)
        self._on_line = on_line
        self._zygote: launcher.Zygote | None = None
        self._family: Family | None = None
        self._loading = False

    def prepare(self) -> None:
        """Takes a warm zygote or starts one, and has it import."""
        if self._zygote is not None and self._zygote.alive:
            return
        if self._zygote is not None:
            if self._family is not None:
                self._family.lost()
            launcher.give_back(self._zygote)
        self._zygote = launcher.take()
        modules = [name for name in _FORKABLE if name in sys.modules]
        self._loading = self._zygote.preload([*modules, *self._backend.preload()])

    def await_ready(self, reactor: Reactor, stopped: Callable[[], bool]) -> None:
        """Waits until the zygote has imported what workers need."""
        self.prepare()
        zygote = self._zygote
        if zygote is None or not self._loading:
            return
        reactor.watch(zygote.fileno(), lambda _: self._imported(zygote))
        try:
            reactor.run_until(lambda: not self._loading or stopped())
        finally:
            reactor.forget(zygote.fileno())

    def world_size(self) -> int:
        """The number asked for; of an elastic range its upper end."""
        wanted = self._scaling.num_workers
        num_workers = wanted if isinstance(wanted, int) else wanted[1]
        check_gpus(self._scaling, num_workers)
        return num_workers

    def start(self, reactor: Reactor, jobs: Sequence[protocol.Job], listener: Listener) -> WorkerGroup:
        """Starts the workers of one attempt."""
        self.await_ready(reactor, lambda: False)
        attempt = jobs[0].attempt
        port = reserve_port()
        pump = OutputPump(self._logs, lambda rank: layout.log_key(attempt, rank), self._on_line)
        group = LocalGroup(reactor, self._family_in(reactor), pump, port, listener)
        return _started(group, [self._complete(job, port.getsockname()[1]) for job in jobs])

    def start_beside(
        self, reactor: Reactor, job: protocol.Job, listener: Listener, log_key: str, on_line: LineHandler
    ) -> WorkerGroup | None:
        """Starts one process that is no worker of the group: it sees this program's environment, and every GPU.

        Args:
            log_key: Where its output is kept.
            on_line: Gets every line of it.

        Returns:
            None where it cannot be started yet, because the zygote is new and still imports.

        Raises:
            WorkerStartError: It cannot be started.
            OSError: Likewise, for want of descriptors.
        """
        self.prepare()
        zygote = self._zygote
        assert zygote is not None
        if self._loading:
            reactor.watch(zygote.fileno(), lambda _: self._imported_beside(reactor, zygote))
            return None
        pump = OutputPump(self._logs, lambda _: log_key, on_line)
        group = LocalGroup(reactor, self._family_in(reactor), pump, None, listener)
        threads = os.environ.get("OMP_NUM_THREADS", str(self._threads(self.world_size() or 1)))
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1", **job.environment}
        group.waits_for_output = False  # it may have left a child that holds its output open
        return _started(group, [_placed(job, environment)])

    def close(self) -> None:
        """Leaves the zygote warm for the next run; one that still imports is ended, for nobody waits for it."""
        self._logs.close()
        if self._zygote is not None:
            if self._loading:
                launcher.discard(self._zygote)
            else:
                launcher.give_back(self._zygote)
            self._zygote = None

    def _imported_beside(self, reactor: Reactor, zygote: launcher.Zygote) -> None:
        """While nobody waits for it in particular: what goes wrong is told of at the next start."""
        try:
            self._imported(zygote)
        except WorkerStartError as error:
            _LOG.warning("%s", error)
            self._loading = False
        if not self._loading:
            reactor.forget(zygote.fileno())

    def _imported(self, zygote: launcher.Zygote) -> None:
        message = zygote.receive()
        if message is None:
            raise WorkerStartError(f"the process that starts workers died at its imports:\n{zygote.last_words()}")
        if isinstance(message, wire.Preloaded):
            self._loading = False
            zygote.can_fork = message.can_fork

    def _complete(self, job: protocol.Job, port: int) -> protocol.Job:
        size = job.world_size
        environment = {
            **os.environ,
            # torchrun's names, so that frameworks written for it find their way.
            "RANK": str(job.rank),
            "LOCAL_RANK": str(job.rank),
            "GROUP_RANK": "0",
            "ROLE_RANK": str(job.rank),
            "ROLE_NAME": "default",
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "GROUP_WORLD_SIZE": "1",
            "ROLE_WORLD_SIZE": str(size),
            "MASTER_ADDR": _ADDRESS,
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RESTART_COUNT": str(job.attempt - 1),
            "TORCHELASTIC_RUN_ID": job.run_name,
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(self._threads(size))),
            "PYTHONUNBUFFERED": "1",
            **gpu_variables(
                check_gpus(self._scaling, size),
                job.rank,
                self._scaling.gpus_per_worker,
                shared=self._backend.share_gpus,
            ),
            **job.environment,
        }
        return _placed(job, environment)

    def _threads(self, num_workers: int) -> int:
        cpus = (self._scaling.resources_per_worker or {}).get("CPU")
        return max(1, int(cpus) if cpus else (os.cpu_count() or 1) // num_workers)

    def _family_in(self, reactor: Reactor) -> Family:
        zygote = self._zygote
        assert zygote is not None
        if self._family is None or self._family.zygote is not zygote:
            self._family = Family(reactor, zygote)
        return self._family


def _started(group: LocalGroup, jobs: Sequence[protocol.Job]) -> LocalGroup:
    try:
        group.start(jobs)
    except BaseException:
        group.kill()
        group.close()
        raise
    return group


def _placed(job: protocol.Job, environment: dict[str, str]) -> protocol.Job:
    """The job of a worker that is to look as if the user had started the script on this node."""
    return msgspec.structs.replace(
        job,
        environment=environment,
        search_path=[path or os.getcwd() for path in sys.path],
        argv=list(sys.argv),
        directory=os.getcwd(),
        local_rank=job.rank,
        local_world_size=job.world_size,
        node_rank=0,
    )


def reserve_port() -> socket.socket:
    """A socket that holds a free port for the group's rendezvous.

    It is bound and does not listen: the kernel gives the port to nobody else, and the worker that hosts the
    rendezvous can still bind it, since both allow the address's reuse.
    """
    holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind((_ADDRESS, 0))
    return holder
