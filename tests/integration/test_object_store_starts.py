"""Where a bucket cannot be used: what a start says, without a secret; processes that may not share one; packages that are missing."""

from __future__ import annotations

import os
import pickle
import re
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from holdfast.errors import (
    ConfigurationError,
    StorageAccessError,
    StorageUnavailableError,
)
from holdfast.stores import Store, open_store
from support.s3_proxy import Fault, Proxy, answer
from support.s3_server import KEYS, S3Server

# So few tries that a test can wait for them.
QUICK = {"max_retries": "2", "retry_timeout": "30"}
pytestmark = pytest.mark.usefixtures("keys")


@pytest.fixture
def store(server: S3Server, proxy: Proxy, bucket: str) -> Store:
    """Through the proxy."""
    return open_store(server.url(bucket, "run", port=proxy.port, **QUICK))


def _deletes_nothing(body: bytes) -> bytes:
    """What S3 says, with success, to a bulk deletion that it refuses object by object."""
    key = re.search(rb"<Key>(.*?)</Key>", body)
    assert key is not None
    return answer(200, "AccessDenied", key=key[1].decode())


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault("PUT", answers=answer(403, "AccessDenied")), "they need s3:GetObject"),
        (Fault("GET", answers=answer(403, "AccessDenied")), "they need .*s3:ListBucket"),
        (Fault("POST", answers=answer(403, "AccessDenied")), "s3:DeleteObject"),
        (
            Fault("POST", answers=_deletes_nothing),
            "they need .*s3:DeleteObject",
        ),
        (Fault("PUT", answers=answer(403, "InvalidAccessKeyId")), "AWS_ACCESS_KEY_ID"),
        (Fault("PUT", answers=answer(403, "SignatureDoesNotMatch")), "AWS_SECRET_ACCESS_KEY"),
        (Fault("PUT", answers=answer(403, "RequestTimeTooSkewed")), "clock"),
        (
            Fault(
                "PUT", answers=answer(400, "AuthorizationHeaderMalformed", "the region is wrong; expecting 'eu-west-3'")
            ),
            "it is in eu-west-3; set AWS_REGION",
        ),
        (
            Fault("PUT", answers=b"HTTP/1.1 301 Moved\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
            "another region",
        ),
    ],
    ids=[
        "no-write",
        "no-list",
        "no-delete",
        "none-deleted",
        "no-key",
        "wrong-secret",
        "clock",
        "region",
        "bare-redirect",
    ],
)
def test_a_start_that_cannot_work_says_what_to_do(store: Store, proxy: Proxy, fault: Fault, says: str) -> None:
    proxy.fail(Fault(**{**vars(fault), "times": -1}))
    with pytest.raises(StorageAccessError, match=says) as caught:
        store.prepare()
    assert store.url in str(caught.value)


def test_a_start_without_a_bucket_says_so(server: S3Server) -> None:
    with pytest.raises(StorageAccessError, match="no such bucket"):
        open_store(server.url("not-made", "run")).prepare()


def test_a_start_without_an_endpoint_says_so_soon(server: S3Server) -> None:
    port = _closed_port()
    began_s = time.monotonic()
    with pytest.raises(StorageUnavailableError, match=f"127.0.0.1:{port} cannot be reached"):
        open_store(server.url("bucket", port=port)).prepare()
    assert time.monotonic() - began_s < 15


def test_a_start_without_credentials_says_so(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    url = server.url("bucket", metadata_endpoint=f"http://127.0.0.1:{_closed_port()}")
    with pytest.raises(StorageAccessError, match="no credentials were found; set AWS_ACCESS_KEY_ID"):
        open_store(url).prepare()


def test_secrets_are_used_and_never_shown(
    server: S3Server, proxy: Proxy, bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = open_store(server.url(bucket, "run", **QUICK))
    # What the environment gives is not carried along.
    assert b"test-secret-key" not in pickle.dumps(plain)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-the-environment")
    query = server.url(bucket, "run", port=proxy.port, **QUICK).partition("?")[2]
    store = open_store(f"s3://THEKEYITSELF:THE%2FSECRET%2FITSELF@{bucket}/run?{query}&session_token=THETOKENITSELF")
    seen = [store.url, repr(store), repr(store.__reduce__()[1][0])]
    proxy.fail(Fault("PUT", times=-1, answers=answer(403, "X", "THEKEYITSELF THE/SECRET/ITSELF of-the-environment")))
    with pytest.raises(StorageAccessError) as caught:
        store.write("a", b"")
    proxy.heal()
    store.write("a", b"")
    assert any("THEKEYITSELF" in each for each in proxy.requests) is False
    seen += [str(caught.value), repr(caught.value.__cause__), caplog.text, str(store.child("b").url)]
    for text in seen:
        for secret in ("THEKEYITSELF", "THE/SECRET/ITSELF", "THETOKENITSELF", "of-the-environment"):
            assert secret not in text
    assert pickle.loads(pickle.dumps(store)).read("a") == b""
    with pytest.raises(ConfigurationError) as refused:
        open_store(f"s3://THEKEYITSELF:THESECRET@{bucket}/run?secret_key=THESECRET&nonsense=THESECRET")
    assert "THE" not in str(refused.value)


def _run(script: str, url: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), url],
        env={**os.environ, **KEYS}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_forked_child_gets_an_error_where_it_would_hang(server: S3Server, bucket: str) -> None:
    script = """
        import os, sys
        from holdfast.errors import StorageError
        from holdfast.stores import open_store
        store = open_store(sys.argv[1])
        store.write("a", b"1")
        child = os.fork()
        if child == 0:
            try:
                store.read("a")
            except StorageError as error:
                print(error, flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert store.read("a") == b"1"
    """
    assert "spawn" in _run(script, server.url(bucket))


def test_a_child_that_was_forked_before_the_first_use_is_free(server: S3Server, bucket: str) -> None:
    script = """
        import os, sys
        from holdfast.stores import open_store
        store = open_store(sys.argv[1])
        for name in ("a", "b"):
            child = os.fork()
            if child == 0:
                store.prepare()
                store.write(name, b"1")
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        print(sorted(entry.key for entry in store.list()))
    """
    assert _run(script, server.url(bucket)).strip() == "['a', 'b']"


def test_a_process_that_ends_right_after_an_answer_ends_well(server: S3Server, bucket: str) -> None:
    script = """
        import sys, threading, time
        from holdfast.stores import object_loop, open_store
        store = open_store(sys.argv[1])
        store.write("a", b"1")
        loop = object_loop.process.loop()
        wake = loop._write_to_self

        def is_slow_to_come_back():
            wake()
            if threading.current_thread() is not threading.main_thread():
                time.sleep(0.3)

        class TakesItsTime:
            def __del__(self, sleep=time.sleep, print=print):
                sleep(0.6)
                print("ended")

        loop._write_to_self = is_slow_to_come_back  # the library's thread, as it may be on a busy machine
        print(store.read("a"))
        left_to_the_end = TakesItsTime()
    """
    assert _run(script, server.url(bucket, "run")).split() == ["b'1'", "ended"]


def test_a_missing_package_is_named_with_its_remedy(server: S3Server) -> None:
    script = """
        import sys
        sys.modules["obstore"] = None
        import holdfast
        from holdfast.stores import open_store
        try:
            open_store(sys.argv[1]).read("a")
        except holdfast.ConfigurationError as error:
            print(error)
    """
    assert 'pip install "holdfast[s3]"' in _run(script, server.url("bucket"))


def test_importing_holdfast_imports_no_client() -> None:
    script = """
        import sys
        import holdfast, holdfast.stores
        print([name for name in sys.modules if "obstore" in name or "object_store" in name])
    """
    assert _run(script, "").strip() == "[]"
