"""Ceph's RADOS Gateway for the tests: a user of their own, and more where rights are what is tested."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from servers import ceph
from support.s3_server import KEYS, S3Server, need_packages

_MEMORY_BYTES = 4 << 30


@dataclass(frozen=True)
class CephServer(S3Server):
    """A running gateway.

    Attributes:
        cluster: What it is the gateway of.
    """

    cluster: ceph.Ceph

    def add_user(self, name: str) -> dict[str, str]:
        """The keys of a new user, who owns nothing."""
        keys = {"AWS_ACCESS_KEY_ID": f"key-of-{name}", "AWS_SECRET_ACCESS_KEY": f"secret-of-{name}"}
        self.cluster.add_user(name, *keys.values())
        return keys


@contextmanager
def running_ceph(directory: Path) -> Iterator[CephServer]:
    """Starts the cluster, which takes some seconds, and ends it.

    Args:
        directory: Of the cluster's own, and empty.
    """
    need_packages()
    if missing := ceph.missing_packages():
        pytest.skip(f"needs Ceph: apt-get install --no-install-recommends {' '.join(missing)}")
    with ceph.running_ceph(directory, memory_bytes=_MEMORY_BYTES) as cluster:
        cluster.add_user("test", KEYS["AWS_ACCESS_KEY_ID"], KEYS["AWS_SECRET_ACCESS_KEY"])
        yield CephServer(cluster.port, cluster)
