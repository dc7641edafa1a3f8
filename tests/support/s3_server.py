"""A real HTTP server that speaks S3, on this machine, for as long as a test needs it.

No request of a test may leave this machine: without keys a client would ask the network for some, so keys are always set.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        env={**os.environ, **KEYS, "MOTO_S3_DEFAULT_MAX_KEYS": "1000"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        server = S3Server(port)
        deadline_s = time.monotonic() + _START_S
        while True:
            try:
                server.request("GET", "/")
                break
            except OSError:
                assert process.poll() is None, "moto's server ended at its start"
                assert time.monotonic() < deadline_s, "moto's server did not start"
                time.sleep(0.05)
        yield server
    finally:
        process.kill()
        process.wait()
