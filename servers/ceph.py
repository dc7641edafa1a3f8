"""Ceph's RADOS Gateway, an S3 server that many have, on a cluster of one node that keeps everything in memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from servers.process import ServerError, free_port, running

_PACKAGES = {"ceph-mon": "ceph-mon", "ceph-osd": "ceph-osd", "radosgw": "radosgw", "ceph": "ceph-common"}
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
_COMMAND_S = 100.0

# One copy of everything, no passwords within, no sockets of files (their paths may be too long), few threads.
_SETTINGS = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{monitor},v1:127.0.0.1:{old_monitor}]
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
ms mon client mode = crc
ms mon service mode = crc
ms mon cluster mode = crc
auth cluster required = none
auth service required = none
auth client required = none
auth allow insecure global id reclaim = false
admin socket =
run dir = {directory}
crash dir = {directory}
log file = {directory}/$name.log
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
[mon]
mon data = {directory}/monitor
mon data avail crit = 1
[osd]
osd data = {directory}/storage
osd objectstore = memstore
memstore device bytes = {memory_bytes}
osd op num shards = 2
osd op num threads per shard = 1
osd class dir = {classes}
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{gateway} tcp_nodelay=1
rgw data = {directory}/gateway
rgw thread pool size = 32
rgw rados pool pg num min = 1
rgw enable usage log = false
rgw run sync thread = false
rgw enable quota threads = false
rgw enable gc threads = {forgets}
rgw gc obj min wait = 1
rgw gc processor period = 5
rgw gc processor max time = 5
"""


@dataclass(frozen=True)
class Ceph:
    """A running cluster.

    Attributes:
        port: Its gateway's, on 127.0.0.1.
        settings: The file of its settings.
        pids: Of its processes.
    """

    port: int
    settings: Path
    pids: Sequence[int]

    def add_user(self, name: str, key: str, secret: str) -> None:
        """Adds a user with these keys, who owns nothing.

        Raises:
            ServerError: It fails.
        """
        keys = ("--access-key", key, "--secret-key", secret)
        self._administer("user", "create", "--uid", name, "--display-name", name, *keys)

    def forget_deleted(self) -> None:
        """Frees the memory of what was deleted, which the gateway does later by itself, if at all.

        Raises:
            ServerError: It fails.
        """
        self._administer("gc", "process", "--include-all")

    def _administer(self, *arguments: str) -> None:
        _run("radosgw-admin", "-c", str(self.settings), *arguments)


def missing_packages() -> list[str]:
    """What is to be installed before it can run."""
    return [package for program, package in _PACKAGES.items() if shutil.which(program, path=_PATH) is None]


@contextmanager
def running_ceph(directory: Path, *, memory_bytes: int, forgets: bool = True) -> Iterator[Ceph]:
    """Starts the cluster, which takes some seconds, and ends it.

    Args:
        directory: Of the cluster's own, and empty.
        memory_bytes: The most that objects may take.
        forgets: It frees the memory of what was deleted by itself, whatever is being measured meanwhile.

    Raises:
        ServerError: It is not installed, or does not start.
    """
    if missing := missing_packages():
        raise ServerError(f"Ceph is not installed: apt-get install --no-install-recommends {' '.join(missing)}")
    monitor, old_monitor, gateway = free_port(), free_port(), free_port()
    fsid, storage_id = str(uuid.uuid4()), str(uuid.uuid4())
    for name in ("monitor", "storage", "gateway"):
        (directory / name).mkdir()
    settings, monitors = directory / "ceph.conf", directory / "monitors"
    settings.write_text(
        _SETTINGS.format(
            fsid=fsid,
            directory=directory,
            monitor=monitor,
            old_monitor=old_monitor,
            gateway=gateway,
            memory_bytes=memory_bytes,
            forgets=str(forgets).lower(),
            classes=next(Path("/usr/lib").glob("*/rados-classes"), Path("/usr/lib/rados-classes")),
        )
    )
    conf = ("-c", str(settings))
    addresses = f"[v2:127.0.0.1:{monitor},v1:127.0.0.1:{old_monitor}]"
    with ExitStack() as stack:
        _run("monmaptool", "--create", "--addv", "a", addresses, "--fsid", fsid, str(monitors))
        _run("ceph-mon", *conf, "--mkfs", "-i", "a", "--monmap", str(monitors))
        monitor_command = [_found("ceph-mon"), *conf, "-f", "-i", "a"]
        processes = [stack.enter_context(running(monitor_command, directory / "mon.a.out"))]
        _run("ceph", *conf, "osd", "new", storage_id)
        _run("ceph-osd", *conf, "-i", "0", "--mkfs", "--osd-uuid", storage_id)
        storage_command = [_found("ceph-osd"), *conf, "-f", "-i", "0"]
        processes.append(stack.enter_context(running(storage_command, directory / "osd.0.out")))
        command = [_found("radosgw"), *conf, "-f", "-n", "client.rgw"]
        processes.append(stack.enter_context(running(command, directory / "client.rgw.out", port=gateway)))
        yield Ceph(gateway, settings, [process.pid for process in processes])


def _found(program: str) -> str:
    return shutil.which(program, path=_PATH) or program


def _run(program: str, *arguments: str) -> None:
    done = subprocess.run(
        [_found(program), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_COMMAND_S,
        check=False,
    )
    if done.returncode != 0:
        raise ServerError(f"{program} {' '.join(arguments[:4])} failed: {done.stdout[-1000:]}{done.stderr[-1000:]}")
