"""Azurite, Microsoft's own emulator of Azure's storage, on this machine."""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import os
import secrets
import shutil
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from servers.process import free_port, running
from support.s3_server import need_packages

ACCOUNT = "testaccount"
KEY = base64.b64encode(b"the key of the tests' account").decode()
_PROGRAMS = Path(__file__).parents[2] / ".tools" / "azurite" / "node_modules" / ".bin"


@dataclass(frozen=True)
class AzureServer:
    """A running server.

    Attributes:
        port: On 127.0.0.1.
    """

    port: int

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process that uses the server is to have in its environment."""
        return {"AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": KEY}

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}/{ACCOUNT}"

    def make_bucket(self) -> str:
        name = f"container-{secrets.token_hex(6)}"
        self._request("PUT", f"{name}?restype=container")
        return name

    def url(self, bucket: str, prefix: str = "", *, port: int | None = None, **options: str) -> str:
        """The URL of a container, through another port (a proxy's) if one is given."""
        return f"az://{bucket}/{prefix}?{self._query(port, options)}"

    def url_of_data_lake(self, bucket: str, prefix: str = "", **options: str) -> str:
        """The URL as programs of Hadoop's family write it."""
        return f"abfss://{bucket}@{ACCOUNT}.dfs.core.windows.net/{prefix}?{self._query(None, options)}"

    def _query(self, port: int | None, options: Mapping[str, str]) -> str:
        endpoint = f"http://127.0.0.1:{port or self.port}/{ACCOUNT}"
        return "&".join(f"{name}={value}" for name, value in {"endpoint": endpoint, **options}.items())

    def _request(self, method: str, path: str) -> None:
        """A request without a body, signed as Azure's documentation has it ("Authorize with Shared Key")."""
        headers = {
            "x-ms-date": datetime.datetime.now(datetime.UTC).strftime("%a, %d %b %Y %H:%M:%S GMT"),
            "x-ms-version": "2023-11-03",
        }
        plain, _, query = path.partition("?")
        resource = [f"/{ACCOUNT}/{ACCOUNT}/{plain}", *(pair.replace("=", ":") for pair in query.split("&"))]
        lines = [method, *[""] * 11, *(f"{name}:{value}" for name, value in headers.items()), *resource]
        signature = hmac.digest(base64.b64decode(KEY), "\n".join(lines).encode(), hashlib.sha256)
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(signature).decode()}"
        asked = urllib.request.Request(f"{self.endpoint}/{path}", method=method, headers=headers)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=10) as answer:
            answer.read()


@contextmanager
def running_azurite(directory: Path) -> Iterator[AzureServer]:
    """Starts the server, which keeps everything below a directory, and ends it."""
    need_packages()
    if shutil.which("node") is None:
        pytest.skip("needs node, which is not installed")
    program = shutil.which("azurite-blob", path=os.pathsep.join([str(_PROGRAMS), os.environ.get("PATH", "")]))
    if program is None:
        pytest.skip("needs azurite, which is not installed: make test-packages")
    port, log = free_port(), directory.with_suffix(".log")
    command = [
        program, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(directory), "--silent",
        "--disableProductStyleUrl", "--skipApiVersionCheck", "--disableTelemetry",
    ]  # fmt: skip
    with running(command, log, port=port, environment={**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}):
        yield AzureServer(port)
