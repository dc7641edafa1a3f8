"""The S3 server that the measures of buckets run on, one and the same for all libraries of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.process import JobError, cpu_seconds
from servers.ceph import running_ceph
from servers.link import running_link
from servers.process import ServerError

BUCKET = "bench"
_KEY, _SECRET = "benchkey", "benchsecret"
_MEMORY_BYTES = 8 << 30


@dataclass(frozen=True)
class ObjectServer:
    """A running server with an empty bucket.

    Attributes:
        endpoint: Where the libraries reach it.
        near: Where it is reached without a link, to look what is there.
        forget_deleted: Frees what deleted objects still take.
        pids: Of its processes.
    """

    endpoint: str
    near: str
    forget_deleted: Callable[[], None]
    pids: Sequence[int]

    @property
    def environment(self) -> Mapping[str, str]:
        """What tells a client of it; every one of the libraries reads these."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": _KEY,
            "AWS_SECRET_ACCESS_KEY": _SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            # Amazon's newer clients send checksums behind the data, which this Ceph refuses. pyarrow's copy does not even notice.
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        }

    def cpu_seconds(self) -> float:
        """What its processes have used."""
        return sum(map(cpu_seconds, self.pids))

    def size_bytes(self, prefix: str) -> int:
        """What all objects below a prefix have together."""
        import obstore

        return sum(entry["size"] for page in obstore.list(self._store(), prefix) for entry in page)

    def delete(self, prefix: str) -> None:
        """Deletes all objects below a prefix."""
        import obstore

        store = self._store()
        for page in obstore.list(store, prefix, chunk_size=1000):
            obstore.delete(store, [entry["path"] for entry in page])

    def _store(self) -> Any:
        from obstore.store import S3Store

        return S3Store(
            BUCKET,
            endpoint=self.near,
            access_key_id=_KEY,
            secret_access_key=_SECRET,
            region="us-east-1",
            client_options={"allow_http": True},
        )


@contextmanager
def running_server(directory: Path, *, is_far: bool = False) -> Iterator[ObjectServer]:
    """Starts Ceph's gateway.

    Args:
        directory: Of the server's own, and empty.
        is_far: The libraries reach it over a link (`servers.link`).

    Raises:
        JobError: It is not installed, or does not start.
    """
    try:
        # What is deleted is forgotten when we say so, not beside a measurement.
        with running_ceph(directory, memory_bytes=_MEMORY_BYTES, forgets=False) as ceph, ExitStack() as stack:
            ceph.add_user("bench", _KEY, _SECRET)
            near = f"http://127.0.0.1:{ceph.port}"
            far = f"http://127.0.0.1:{stack.enter_context(running_link(ceph.port))}" if is_far else near
            server = ObjectServer(far, near, ceph.forget_deleted, ceph.pids)
            _make_bucket(server)
            yield server
    except ServerError as error:
        raise JobError(str(error)) from error


def _make_bucket(server: ObjectServer) -> None:
    import boto3  # obstore has no call for it

    client = boto3.client(
        "s3",
        endpoint_url=server.near,
        aws_access_key_id=_KEY,
        aws_secret_access_key=_SECRET,
        region_name="us-east-1",
    )
    client.create_bucket(Bucket=BUCKET)
