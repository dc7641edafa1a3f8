"""The servers that tests of several modules use: each is started when the first test asks for it, and once a session."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from support.azurite import AzureServer, running_azurite
from support.ceph import CephServer, running_ceph
from support.gcs_server import GoogleServer, running_google
from support.s3_server import S3Server, running_rclone

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


@pytest.fixture(params=["ceph", "rclone", "azurite", "google"])
def object_server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ObjectServer:
    """Each kind of object store in turn, with its credentials in the environment."""
    server: ObjectServer = request.getfixturevalue(request.param)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server
