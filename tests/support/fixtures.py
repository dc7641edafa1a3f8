"""The servers that tests of several modules use, each started when the first test asks for it.

Real ones once a session. The one that only seems to be a store once a module: it never gives memory back.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import cloudpickle
import pytest

from support.azurite import AzureServer, running_azurite
from support.ceph import CephServer, running_ceph
from support.gcs_server import GoogleServer, running_google
from support.s3_proxy import Proxy, running_proxy
from support.s3_server import KEYS, S3Server, running_rclone, running_server

ObjectServer = S3Server | AzureServer | GoogleServer


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CephServer]:
    directory = tmp_path_factory.mktemp("ceph")
    with running_ceph(directory) as server:
        yield server
    # Where it did not end well, what it said stays.
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with running_rclone(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureServer]:
    directory = tmp_path_factory.mktemp("azurite")
    with running_azurite(directory) as server:
        yield server
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def google() -> Iterator[GoogleServer]:
    with running_google() as server:
        yield server


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with running_server() as server:
        yield server


@pytest.fixture
def keys(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a job in a bucket of `server`."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    # Functions travel by value: a module of tests cannot be imported by a worker.
    cloudpickle.register_pickle_by_value(request.module)


@pytest.fixture
def proxy(server: S3Server, keys: None) -> Iterator[Proxy]:
    with running_proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def bucket(server: S3Server) -> str:
    return server.make_bucket()


@pytest.fixture
def url(server: S3Server, proxy: Proxy, bucket: str) -> str:
    """Where runs are stored, through the proxy."""
    return server.url(bucket, "exp", port=proxy.port)


@pytest.fixture(params=["ceph", "rclone", "azurite", "google"])
def object_server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ObjectServer:
    """Each kind of object store in turn, with its credentials in the environment."""
    server: ObjectServer = request.getfixturevalue(request.param)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server
