"""A worker reports to a bucket and is killed; the next attempt begins with that checkpoint.

python kept.py holdfast DIRECTORY NUM_FILES FILE_BYTES (default|0)

The last argument is `restart_cache_bytes`. The bucket is in a server of this machine that the job starts and ends.
Writes `times.json`: `{"ready_s": …, "fetched_bytes": …}`: seconds from `get_checkpoint()` to the directory's being ready, and what was
fetched of the checkpoint from the kill until then.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import shared

import holdfast as train

directory = Path(sys.argv[2])
num_files, file_bytes = (int(text) for text in sys.argv[3:5])
cache_bytes = None if sys.argv[5] == "default" else int(sys.argv[5])
_START_S = 60.0

os.environ |= {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_EC2_METADATA_DISABLED": "true",
    # Whoever loses the server's address on the way asks a port of this machine that nobody listens on.
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
}


@contextmanager
def running_server():
    """The server's address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = open(directory / "server.log", "wb")  # noqa: SIM115 - as long as the process
    command = [sys.executable, str(Path(__file__).with_name("s3_server.py")), str(port)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + _START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def ask(url, method="GET"):
    request = urllib.request.Request(url, method=method)
    request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=key/20300101/us-east-1/s3/aws4_request")
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return answer.read()


def loop(config):
    killed = Path(config["directory"], "killed")
    if not killed.exists():
        with tempfile.TemporaryDirectory(dir=config["directory"]) as made:
            shared.write_files(Path(made, "files"), config["num_files"], config["file_bytes"])
            pending = train.report(
                {"loss": 1.0},
                train.Checkpoint.from_directory(made),
                checkpoint_upload_mode=train.CheckpointUploadMode.ASYNC,
            )
        pending.result(600)
        killed.write_bytes(ask(config["counter"]))
        os.kill(os.getpid(), signal.SIGKILL)
    begin = time.perf_counter()
    with train.get_checkpoint().as_directory():
        ready_s = time.perf_counter() - begin
    fetched_bytes = int(ask(config["counter"])) - int(killed.read_bytes())
    times = {"ready_s": ready_s, "fetched_bytes": fetched_bytes}
    Path(config["directory"], "times.json").write_text(json.dumps(times))


with running_server() as address:
    ask(f"{address}/bucket", "PUT")
    train.DataParallelTrainer(
        loop,
        train_loop_config={
            "directory": str(directory),
            "counter": f"{address}/-/fetched",
            "num_files": num_files,
            "file_bytes": file_bytes,
        },
        run_config=train.RunConfig(
            name="kept",
            storage_path=f"s3://bucket/runs?endpoint_override={address}&region=us-east-1",
            failure_config=train.FailureConfig(max_failures=1),
            restart_cache_bytes=cache_bytes,
        ),
    ).fit()
