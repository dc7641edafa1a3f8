"""A small Google Cloud Storage: as much of its XML interface as a client of stores needs, and a refusal of everything else.

No server for Google's storage is to be had that keeps to its conditions, so this one is ours. It is strict: a header or
parameter that it does not know is answered with 501, lest a test passes because something was not looked at. What it does is
what Google's manual says: https://cloud.google.com/storage/docs/xml-api/reference-methods
"""

from __future__ import annotations

import email.utils
import re
import secrets
import sys
import threading
import urllib.parse
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from xml.sax.saxutils import escape

from support.gcs_objects import Bucket, Page, Refused, Stored
from support.s3_server import need_packages

TOKEN = "token-of-the-tests"
_META = "x-goog-meta-"
_CONDITION = "x-goog-if-generation-match"
_COPIED = "x-goog-copy-source"
_KNOWN_HEADERS = frozenset(
    {"host", "user-agent", "accept", "accept-encoding", "connection", "authorization", "content-length", "content-type"}
)
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_MOST_LISTED = 1000


@dataclass
class GoogleServer:
    """A running server.

    Attributes:
        port: On 127.0.0.1.
        buckets: By name.
        denied: What nobody may do: `read`, `write`, `list`, `delete`.
    """

    port: int
    buckets: dict[str, Bucket] = field(default_factory=dict)
    denied: set[str] = field(default_factory=set)

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process that uses the server is to have in its environment."""
        # Should anything ask a machine of Google's for credentials, it asks a port of this one that nobody listens on.
        return {"GOOGLE_BEARER_TOKEN": TOKEN, "GCE_METADATA_HOST": "127.0.0.1:9"}

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def make_bucket(self) -> str:
        name = f"bucket-{secrets.token_hex(6)}"
        self.buckets[name] = Bucket()
        return name

    def url(self, bucket: str, prefix: str = "", *, port: int | None = None, **options: str) -> str:
        """The URL of a bucket, through another port (a proxy's) if one is given."""
        query = {"endpoint": f"http://127.0.0.1:{port or self.port}", **options}
        return f"gs://{bucket}/{prefix}?" + "&".join(f"{name}={value}" for name, value in query.items())

    def unfinished_uploads(self, bucket: str) -> int:
        return self.buckets[bucket].num_unfinished


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    google: GoogleServer  # of the subclass that a server makes

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        # Read before anything is said, or what was not read is taken for the next request.
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        try:
            path, _, query = self.path.partition("?")
            name, _, key = path.removeprefix("/").partition("/")
            pairs = urllib.parse.parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
            asked = _Asked(self.command, urllib.parse.unquote(key), dict(pairs), self.headers, body)
            if self.headers.get("authorization") != f"Bearer {TOKEN}":
                raise Refused(401, "AuthenticationRequired", "Authentication required.")
            bucket = self.google.buckets.get(urllib.parse.unquote(name))
            if bucket is None:
                raise Refused(404, "NoSuchBucket", "The specified bucket does not exist.")
            self._answer(*asked.done(bucket, self.google.denied))
        except Refused as refused:
            text = f"<Error><Code>{refused.code}</Code><Message>{escape(str(refused))}</Message></Error>"
            self._answer(refused.status, {"content-type": "application/xml"}, text.encode())

    def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815 - as the base class calls them


_Answer = tuple[int, Mapping[str, str], bytes]


@dataclass
class _Asked:
    """One request for something in a bucket."""

    method: str
    key: str
    query: Mapping[str, str]
    headers: Any
    body: bytes

    def done(self, bucket: Bucket, denied: set[str]) -> _Answer:
        """Does it, and says what to answer."""
        form = (self.method, bool(self.key), *sorted({"uploads", "uploadId", "partNumber"} & set(self.query)))
        match form:
            case ("GET", False):
                self._allow("list", denied, {"list-type", "prefix", "delimiter", "continuation-token", "max-keys"})
                return self._listing(bucket)
            case ("GET" | "HEAD", True):
                self._allow("read", denied, headers={"range"})
                return self._read(bucket.get(self.key))
            case ("PUT", True) if _COPIED in self.headers:
                self._allow("write", denied, headers={_COPIED})
                _, _, source = urllib.parse.unquote(self.headers[_COPIED]).lstrip("/").partition("/")
                found = bucket.get(source)
                bucket.put(self.key, found.data, found.kept, None)
                return _xml("<CopyObjectResult></CopyObjectResult>")
            case ("PUT", True):
                self._allow("write", denied, headers={_CONDITION, _META})
                condition = self.headers.get(_CONDITION)
                stored = bucket.put(self.key, self.body, self._kept(), None if condition is None else int(condition))
                return 200, {"etag": stored.e_tag, "x-goog-generation": str(stored.generation)}, b""
            case ("DELETE", True):
                self._allow("delete", denied)
                bucket.delete(self.key)
                return 204, {}, b""
            case ("POST", True, "uploads"):
                self._allow("write", denied, {"uploads"}, {_META})
                upload_id = bucket.begin_upload(self.key, self._kept())
                return _xml(
                    f"<InitiateMultipartUploadResult><UploadId>{upload_id}</UploadId></InitiateMultipartUploadResult>"
                )
            case ("PUT", True, "partNumber", "uploadId"):
                self._allow("write", denied, {"partNumber", "uploadId"})
                number = int(self.query["partNumber"])
                return 200, {"etag": bucket.put_part(self.key, self.query["uploadId"], number, self.body)}, b""
            case ("POST", True, "uploadId"):
                self._allow("write", denied, {"uploadId"})
                stored = bucket.complete_upload(self.key, self.query["uploadId"], _named_parts(self.body))
                status, headers, body = _xml(
                    f"<CompleteMultipartUploadResult><ETag>{escape(stored.e_tag)}</ETag></CompleteMultipartUploadResult>"
                )
                return status, {**headers, "x-goog-generation": str(stored.generation)}, body
            case ("DELETE", True, "uploadId"):
                self._allow("write", denied, {"uploadId"})
                bucket.abort_upload(self.key, self.query["uploadId"])
                return 204, {}, b""
        raise Refused(501, "NotImplemented", f"This server does not know {self.method} with {sorted(self.query)}.")

    def _allow(
        self, right: str, denied: set[str], query: set[str] = frozenset(), headers: set[str] = frozenset()
    ) -> None:  # type: ignore[assignment]
        """Refuses what this server would not look at, and what is denied."""
        named = {_META if name.lower().startswith(_META) else name.lower() for name in self.headers}
        unknown = (set(self.query) - query) | (named - _KNOWN_HEADERS - headers)
        if unknown:
            raise Refused(501, "NotImplemented", f"This server does not know {sorted(unknown)}.")
        if right in denied:
            raise Refused(403, "AccessDenied", "Access denied.")

    def _kept(self) -> Mapping[str, str]:
        return {
            name.lower(): value
            for name, value in self.headers.items()
            if name.lower() == "content-type" or name.lower().startswith(_META)
        }

    def _read(self, stored: Stored) -> _Answer:
        headers = {
            **stored.kept,
            "etag": stored.e_tag,
            "last-modified": email.utils.format_datetime(stored.modified, usegmt=True),
            "x-goog-generation": str(stored.generation),
        }
        asked = self.headers.get("range")
        if self.method == "HEAD" or asked is None:
            return 200, {**headers, "content-length": str(len(stored.data))}, stored.data
        if not (found := _RANGE.fullmatch(asked)):
            raise Refused(501, "NotImplemented", f"This server does not know the range {asked!r}.")
        start, size_bytes = int(found[1]), len(stored.data)
        if start >= size_bytes:
            raise Refused(416, "InvalidRange", "The requested range cannot be satisfied.")
        end = min(int(found[2]) + 1 if found[2] else size_bytes, size_bytes)
        return 206, {**headers, "content-range": f"bytes {start}-{end - 1}/{size_bytes}"}, stored.data[start:end]

    def _listing(self, bucket: Bucket) -> _Answer:
        if self.query.get("list-type") != "2":
            raise Refused(501, "NotImplemented", "This server lists in the second version only.")
        limit = min(int(self.query.get("max-keys", _MOST_LISTED)), _MOST_LISTED)
        token = self.query.get("continuation-token", "")
        return _xml(_listed(bucket.list(self.query.get("prefix", ""), self.query.get("delimiter", ""), token, limit)))


def _listed(page: Page) -> str:
    parts = [
        f"<Contents><Key>{escape(name)}</Key><Generation>{stored.generation}</Generation>"
        f"<LastModified>{stored.modified:%Y-%m-%dT%H:%M:%S.%fZ}</LastModified><ETag>{escape(stored.e_tag)}</ETag>"
        f"<Size>{len(stored.data)}</Size></Contents>"
        for name, stored in page.objects
    ]
    parts += [f"<CommonPrefixes><Prefix>{escape(each)}</Prefix></CommonPrefixes>" for each in page.prefixes]
    if page.next_token is not None:
        parts.append(f"<NextContinuationToken>{escape(page.next_token)}</NextContinuationToken>")
    is_cut = "false" if page.next_token is None else "true"
    return f"<ListBucketResult><IsTruncated>{is_cut}</IsTruncated>{''.join(parts)}</ListBucketResult>"


def _named_parts(body: bytes) -> list[tuple[int, str]]:
    return [
        (int(part.findtext("{*}PartNumber") or 0), part.findtext("{*}ETag") or "")
        for part in ElementTree.fromstring(body).iterfind("{*}Part")
    ]


def _xml(text: str) -> _Answer:
    return 200, {"content-type": "application/xml"}, f"<?xml version='1.0' encoding='UTF-8'?>{text}".encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # clients keep connections open for longer than a test lasts
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that is killed breaks its connections. What else goes wrong is to be seen.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def running_google() -> Iterator[GoogleServer]:
    """Runs the server in threads of this process."""
    need_packages()
    google = GoogleServer(0)
    server = _Server(("127.0.0.1", 0), type("_BoundHandler", (_Handler,), {"google": google}))
    google.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield google
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
