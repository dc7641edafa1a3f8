"""One library that brings a directory to a bucket and back, as often as it is told over a socket.

python object_client.py LIBRARY DIRECTORY SOCKET STORAGE NUM_FILES FILE_BYTES

A line of JSON comes with `do`, `name` and `directory`, and one goes back with the seconds that it took. What tells of the server is in the
environment. Holdfast does it as a job does: `up` is a SYNC report of a worker of `fit()`, `down` the directory of a checkpoint that
the node did not keep. Of Ray Train it is the functions that `report` and `Checkpoint.to_directory` call.
"""

import json
import os
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

THREADS = 8
RANGE_BYTES = 16 << 20


def serve(client, address):
    """Does what comes over the socket until it is closed."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        with connection.makefile("rw") as lines:
            while line := lines.readline():
                asked = json.loads(line)
                begin = time.perf_counter()
                took_s = getattr(client, asked["do"])(asked["name"], Path(asked["directory"]))
                # What says itself how long it took has waited for something else besides.
                lines.write(json.dumps({"wall_s": took_s or time.perf_counter() - begin}) + "\n")
                lines.flush()


class Holdfast:
    """In a worker."""

    def __init__(self, storage):
        self._run = f"{storage}/objects"
        self.num_to_keep = 1 if int(sys.argv[6]) >= 1 << 20 else None
        self._leave = None

    def up(self, _, directory):
        """A report that returns when the checkpoint is committed."""
        import holdfast

        holdfast.report({"loss": 1.0}, checkpoint=holdfast.Checkpoint.from_directory(directory))

    def call(self, _, directory):
        """A report that returns when the driver has the files; waits until they are stored.

        Returns:
            The seconds of the call alone.
        """
        import holdfast

        begin = time.perf_counter()
        pending = holdfast.report(
            {"loss": 1.0},
            checkpoint=holdfast.Checkpoint.from_directory(directory),
            checkpoint_upload_mode=holdfast.CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=False,  # it is reported again
        )
        call_s = time.perf_counter() - begin
        pending.result()
        return call_s

    def down(self, _, directory):
        """The newest checkpoint as a directory, without what the driver keeps of it."""
        import holdfast

        place = holdfast.Checkpoint(holdfast.get_checkpoint().path).as_directory()
        directory.symlink_to(place.__enter__())
        self._leave = place.__exit__

    def tidy(self, *_):
        """Waits until what is done behind a checkpoint is done, and gives back what was fetched."""
        from holdfast.stores import open_store

        if self._leave is not None:
            self._leave(None, None, None)
            self._leave = None
        store = open_store(self._run)
        while (
            self.num_to_keep
            and sum(entry.key.rpartition("/")[2].startswith("checkpoint_") for entry in store.list()) > 1
        ):
            time.sleep(0.05)


def run_holdfast(address, storage):
    """Serves in a worker of `fit()`."""
    import holdfast

    client = Holdfast(storage)
    holdfast.DataParallelTrainer(
        lambda _: serve(client, address),
        train_loop_config={},
        scaling_config=holdfast.ScalingConfig(num_workers=1),
        run_config=holdfast.RunConfig(
            name="objects",
            storage_path=storage,
            checkpoint_config=holdfast.CheckpointConfig(num_to_keep=client.num_to_keep),
        ),
    ).fit()


class Client:
    """A library whose functions are called in this process."""

    def __init__(self, storage):
        self.storage = storage
        self.bucket, self.prefix = urlsplit(storage).netloc, urlsplit(storage).path.strip("/")

    def tidy(self, *_):
        """Nothing is done behind it."""


class Ray(Client):
    """`pyarrow.fs.copy_files` as Ray Train calls it."""

    def __init__(self, storage):
        from pyarrow.fs import FileSystem

        super().__init__(storage)
        endpoint = os.environ["AWS_ENDPOINT_URL"]
        self._fs, self._path = FileSystem.from_uri(f"{storage}?endpoint_override={endpoint}&region=us-east-1")

    def up(self, name, directory):
        """What `StorageContext.persist_current_checkpoint` does with the files."""
        from pyarrow.fs import LocalFileSystem
        from ray.train.v2._internal.execution.storage import _pyarrow_fs_copy_files

        target = f"{self._path}/{name}"
        self._fs.create_dir(target)
        _pyarrow_fs_copy_files(
            source=str(directory),
            destination=target,
            source_filesystem=LocalFileSystem(),
            destination_filesystem=self._fs,
        )

    def down(self, name, directory):
        """What `Checkpoint.to_directory` does."""
        from ray.train._internal.storage import _download_from_fs_path

        _download_from_fs_path(fs=self._fs, fs_path=f"{self._path}/{name}", local_path=str(directory))


class S3fs(Client):
    """fsspec's file system."""

    def __init__(self, storage):
        import s3fs

        super().__init__(storage)
        self._fs = s3fs.S3FileSystem(use_listings_cache=False)

    def up(self, name, directory):
        """`put`, recursive."""
        self._fs.put(f"{directory}/", f"{self.storage}/{name}/", recursive=True)

    def down(self, name, directory):
        """`get`, recursive."""
        directory.mkdir()
        self._fs.get(f"{self.storage}/{name}/", f"{directory}/", recursive=True)


class Boto3(Client):
    """boto3's TransferManager with its defaults."""

    def __init__(self, storage):
        import boto3

        super().__init__(storage)
        self._client = boto3.client("s3")

    def _manager(self):
        from boto3.s3.transfer import TransferConfig, create_transfer_manager

        return create_transfer_manager(self._client, TransferConfig())

    def up(self, name, directory):
        """Uploads all files."""
        with self._manager() as manager:
            futures = [
                manager.upload(str(path), self.bucket, f"{self.prefix}/{name}/{path.name}")
                for path in directory.iterdir()
            ]
            for future in futures:
                future.result()

    def down(self, name, directory):
        """Downloads all files that a listing shows."""
        directory.mkdir()
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=f"{self.prefix}/{name}/"
        )
        with self._manager() as manager:
            futures = [
                manager.download(self.bucket, entry["Key"], str(directory / entry["Key"].rpartition("/")[2]))
                for page in pages
                for entry in page["Contents"]
            ]
            for future in futures:
                future.result()


class Dcp(Client):
    """`torch.distributed.checkpoint` over fsspec, on tensors as large as the files, as many files as there are."""

    def __init__(self, storage):
        import torch

        super().__init__(storage)
        self._num_files, file_bytes = int(sys.argv[5]), int(sys.argv[6])
        self._state = {
            f"part-{number:05d}.bin": torch.randint(256, (file_bytes,), dtype=torch.uint8)
            for number in range(self._num_files)
        }

    def up(self, name, _):
        """`save`."""
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

        writer = FsspecWriter(f"{self.storage}/{name}", thread_count=self._num_files)
        dcp.save(self._state, storage_writer=writer, no_dist=True)

    def down(self, name, _):
        """`load`, into tensors that are in use already."""
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader

        dcp.load(self._state, storage_reader=FsspecReader(f"{self.storage}/{name}"), no_dist=True)


class Obstore(Client):
    """obstore alone, with as many threads as Holdfast has: nothing is digested, compared or looked at."""

    def __init__(self, storage):
        from obstore.store import S3Store

        super().__init__(storage)
        self._store = S3Store(self.bucket, client_options={"allow_http": True})

    def up(self, name, directory):
        """`put` of each file."""
        import obstore

        with ThreadPoolExecutor(THREADS) as pool:
            paths = list(directory.iterdir())
            list(pool.map(lambda path: obstore.put(self._store, f"{self.prefix}/{name}/{path.name}", path), paths))

    def down(self, name, directory):
        """Each file in one request to its end, large ones in ranges, several at once."""
        import obstore

        directory.mkdir()
        entries = [entry for page in obstore.list(self._store, f"{self.prefix}/{name}/") for entry in page]
        pieces = [(entry, start) for entry in entries for start in range(0, entry["size"], RANGE_BYTES)]
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda piece: self._fetch(directory, *piece), pieces))

    def _fetch(self, directory, entry, start):
        import obstore

        if entry["size"] <= RANGE_BYTES:
            data = obstore.get(self._store, entry["path"]).bytes()
        else:
            length = min(RANGE_BYTES, entry["size"] - start)
            data = obstore.get_range(self._store, entry["path"], start=start, length=length)
        descriptor = os.open(directory / entry["path"].rpartition("/")[2], os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(descriptor, data, start)
        finally:
            os.close(descriptor)


CLIENTS = {"ray": Ray, "s3fs": S3fs, "boto3": Boto3, "dcp": Dcp, "obstore": Obstore}

if __name__ == "__main__":
    library, _, address, storage = sys.argv[1:5]
    if library == "holdfast":
        run_holdfast(address, storage)
    else:
        serve(CLIENTS[library](storage), address)
