"""`Checkpoint` as a user meets it."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from holdfast.checkpoint import Checkpoint
from holdfast.errors import (
    CheckpointSourceError,
    ConfigurationError,
    DamagedCheckpointError,
    FormatError,
    StoreNotFoundError,
)
from holdfast.persistence import verify
from holdfast.persistence.manifest import encode_manifest
from holdfast.persistence.staging import stage
from holdfast.persistence.upload import Uploader
from holdfast.records import Manifest
from holdfast.stores.local import LocalStore
from support.remote_like_store import RemoteLikeStore
from support.restore_readers import make_remote


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A user's own directory."""
    directory = tmp_path / "plain"
    (directory / "d").mkdir(parents=True)
    (directory / "model.pt").write_bytes(b"weights")
    (directory / "d/extra").write_bytes(b"x")
    return directory


@pytest.fixture
def committed(tmp_path: Path, plain: Path) -> Path:
    """The same, as a report stores it."""
    store = LocalStore(tmp_path / "run/checkpoint_000001")
    uploader = Uploader(2)
    receipt = uploader.store_shard(stage(plain, 0), store, "").result(30)
    uploader.close()
    store.create(".manifest.json", encode_manifest(Manifest(id="1", files=receipt.files)))
    return store.local_path()


def test_the_path_is_absolute_without_a_trailing_slash(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(plain.parent)
    for given in ("plain", "plain/", plain, f"{plain}/", f"file://{plain}/"):
        assert Checkpoint(given).path == str(plain)
    assert Checkpoint.from_directory("plain").path == str(plain)
    assert Checkpoint(plain).filesystem is None
    assert repr(Checkpoint(plain)) == f"Checkpoint({str(plain)!r})"


def test_equal_if_they_refer_to_the_same_place(plain: Path) -> None:
    assert Checkpoint(plain) == Checkpoint(f"{plain}/")
    assert len({Checkpoint(plain), Checkpoint(str(plain))}) == 1
    assert Checkpoint(plain) != Checkpoint(plain / "d")
    assert Checkpoint(plain) != str(plain)


def test_it_travels_between_processes(committed: Path) -> None:
    checkpoint = Checkpoint(committed)
    checkpoint._verified = True
    again = pickle.loads(pickle.dumps(checkpoint))
    assert again == checkpoint
    assert again._verified
    with again.as_directory() as directory:
        assert directory == str(committed)


def test_a_missing_directory_is_refused_at_once_or_at_use(tmp_path: Path, plain: Path) -> None:
    with pytest.raises(CheckpointSourceError, match="does not exist"):
        Checkpoint.from_directory(tmp_path / "nothing")
    with pytest.raises(CheckpointSourceError, match="is a file"):
        Checkpoint.from_directory(plain / "model.pt")
    missing = Checkpoint(tmp_path / "nothing")
    for use in (
        lambda: missing.as_directory().__enter__(),
        missing.to_directory,
        missing.files,
        missing.verify,
        missing.get_metadata,
        lambda: missing.set_metadata({}),
        lambda: missing.open("a"),
    ):
        with pytest.raises(StoreNotFoundError, match="nothing"):
            use()
    assert not (tmp_path / "nothing").exists()


def test_a_local_directory_is_handed_out_and_left_alone(plain: Path, committed: Path) -> None:
    for path in (plain, committed):
        with Checkpoint(path).as_directory() as directory:
            assert directory == str(path)
        assert (path / "model.pt").read_bytes() == b"weights"


def test_damage_is_named_before_anyone_reads_it(committed: Path) -> None:
    (committed / "model.pt").write_bytes(b"WEIGHTS")
    checkpoint = Checkpoint(committed)
    with pytest.raises(DamagedCheckpointError, match=r"checkpoint_000001.*model\.pt: its content changed"):
        with checkpoint.as_directory():
            raise AssertionError("damaged files were handed out")
    with checkpoint.as_directory(include=["d/*"]):
        pass
    with pytest.raises(DamagedCheckpointError, match=r"model\.pt"):
        with checkpoint.as_directory(include=["model.pt"]):
            pass
    with pytest.raises(DamagedCheckpointError, match=r"model\.pt"):
        checkpoint.to_directory()
    (damage,) = checkpoint.verify()
    assert damage.path == "model.pt"
    with pytest.raises(StoreNotFoundError, match="matches 'nope'"):
        with checkpoint.as_directory(include=["nope"]):
            pass


def test_bytes_are_compared_once_and_again_when_touched(committed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = verify._digest_local

    def counting(path: str, file) -> str | None:
        read.append(file.path)
        return real(path, file)

    monkeypatch.setattr(verify, "_digest_local", counting)
    checkpoint = Checkpoint(committed)
    for _ in range(3):
        with checkpoint.as_directory():
            pass
    assert sorted(read) == ["d/extra", "model.pt"]
    (committed / "model.pt").write_bytes(b"WEIGHTS")
    os.utime(committed / "model.pt", ns=(0, 0))
    with pytest.raises(DamagedCheckpointError):
        with checkpoint.as_directory():
            pass
    read.clear()
    trusted = Checkpoint(committed)
    trusted._verified = True
    with trusted.as_directory():
        pass
    assert read == []


def test_verify_says_what_it_cannot_compare(plain: Path, committed: Path) -> None:
    assert Checkpoint(committed).verify() == []
    (problem,) = Checkpoint(plain).verify()
    assert not problem.is_certain
    assert "no digests" in problem.reason
    (committed / ".manifest.json").write_bytes(b"junk")
    (problem,) = Checkpoint(committed).verify()
    assert problem.is_certain
    assert problem.path == ".manifest.json"
    with pytest.raises(FormatError):
        with Checkpoint(committed).as_directory():
            pass


def test_files_come_from_the_manifest_or_from_looking(plain: Path, committed: Path) -> None:
    (plain / ".metadata.json").write_text("{}")
    (plain / "link").symlink_to("model.pt")
    assert [(file.path, file.kind, file.size_bytes) for file in Checkpoint(plain).files()] == [
        ("d/extra", "file", 1),
        ("link", "symlink", 0),
        ("model.pt", "file", 7),
    ]
    (committed / "stranger").write_bytes(b"")
    files = Checkpoint(committed).files()
    assert [file.path for file in files] == ["d/extra", "model.pt"]
    assert all(file.digest for file in files)


def test_a_file_is_opened_without_copying(plain: Path, tmp_path: Path) -> None:
    with Checkpoint(plain).open("d/extra") as file:
        assert file.read() == b"x"
        assert file.seekable()
    with pytest.raises(StoreNotFoundError):
        Checkpoint(plain).open("nope")
    (tmp_path / "secret").write_bytes(b"")
    (plain / "out").symlink_to("../secret")
    for name in ("../secret", "/etc/passwd", "d/../../secret", "", "d//extra", "./model.pt", "out", "a\0b"):
        with pytest.raises(ConfigurationError, match="leads out"):
            Checkpoint(plain).open(name)


def test_a_copy_of_a_checkpoint_is_one(committed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    checkpoint = Checkpoint(committed)
    checkpoint.set_metadata({"a": 1})
    for target in (None, tmp_path / "target", str(tmp_path / "target")):
        copied = checkpoint.to_directory(target)
        assert Checkpoint(copied).verify() == []
        assert Checkpoint(copied).get_metadata() == {"a": 1}
    assert checkpoint.to_directory(committed) == str(committed)


def test_metadata_is_a_json_object(plain: Path) -> None:
    checkpoint = Checkpoint(plain)
    assert checkpoint.get_metadata() == {}
    checkpoint.set_metadata({"a": 1, "b": {"c": [None, "ü"]}})
    checkpoint.update_metadata({"a": 2, "d": 3})
    assert Checkpoint(plain).get_metadata() == {"a": 2, "b": {"c": [None, "ü"]}, "d": 3}
    for bad in ([1], None, "text", {"a": object()}, {"a": {1}}):
        with pytest.raises(TypeError):
            checkpoint.set_metadata(bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nan"):
        checkpoint.set_metadata({"a": float("nan")})
    assert checkpoint.get_metadata()["a"] == 2
    (plain / ".metadata.json").write_text("[]")
    with pytest.raises(FormatError, match="no JSON object"):
        checkpoint.get_metadata()
    (plain / ".metadata.json").write_text("{")
    with pytest.raises(FormatError, match="cannot be read"):
        checkpoint.get_metadata()


def test_a_remote_checkpoint_is_read_through_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    remote, _ = make_remote(tmp_path, num_files=2)
    checkpoint = Checkpoint._from_store(RemoteLikeStore(remote))
    with checkpoint.as_directory() as directory:
        assert (Path(directory) / "file-1").read_bytes() == (tmp_path / "source/file-1").read_bytes()
    assert not Path(directory).exists()
    with checkpoint.as_directory(include=["file-0"]) as directory:
        assert os.listdir(directory) == ["file-0"]
    with checkpoint.open("file-0") as file:
        assert len(file.read()) == 50_000
    checkpoint.set_metadata({"a": 1})
    assert checkpoint.get_metadata() == {"a": 1}
    assert [file.path for file in checkpoint.files()] == ["file-0", "file-1"]
    assert checkpoint.verify() == []
    assert Checkpoint(checkpoint.to_directory(tmp_path / "copy")).verify() == []


def test_a_remote_directory_without_a_manifest_is_read_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    store = RemoteLikeStore(tmp_path / "remote")
    store.write("mine/a", b"1")
    checkpoint = Checkpoint._from_store(store.child("mine"))
    with checkpoint.as_directory() as directory:
        assert (Path(directory) / "a").read_bytes() == b"1"
    with pytest.raises(StoreNotFoundError, match="no checkpoint at"):
        with Checkpoint._from_store(store.child("nothing")).as_directory():
            pass


def test_a_url_is_no_directory_of_this_machine(tmp_path, monkeypatch) -> None:
    with pytest.raises(
        CheckpointSourceError, match=r"it is a URL.*write Checkpoint\('s3://bucket/run/mine'\)"
    ) as caught:
        Checkpoint.from_directory("s3://bucket/run/mine?secret_key=THESECRET")
    assert "THESECRET" not in str(caught.value)
    monkeypatch.chdir(tmp_path)
    cut = Path("s3://bucket/run/mine")
    cut.mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="was a URL once"):
        Checkpoint.from_directory(cut)
