"""What a worker may report, and what it is told where it may not."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from holdfast.errors import CheckpointSourceError
from holdfast.persistence import layout
from holdfast.persistence.manifest import encode_manifest
from holdfast.persistence.staging import stage
from holdfast.records import Manifest
from holdfast.stores.local_tree import remove_tree


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    return directory


def test_every_kind_is_listed_by_path_without_being_read(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "b").write_bytes(b"12345")
    (source / "b").chmod(0o640)
    (source / "a").mkdir()
    (source / "a/deep").mkdir()
    (source / "a/file").symlink_to("../b")
    (source / "empty/inner").mkdir(parents=True)

    def refuse(*_: object, **__: object) -> int:
        raise AssertionError("a file was opened")

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    shard = stage(source, 3)
    assert [(file.path, file.kind, file.size_bytes, file.target) for file in shard.files] == [
        ("a/deep", "directory", 0, None),
        ("a/file", "symlink", 0, "../b"),
        ("b", "file", 5, None),
        ("empty/inner", "directory", 0, None),
    ]
    staged = shard.files[2]
    status = (source / "b").stat()
    assert (staged.mode, staged.mtime_ns, staged.ctime_ns) == (0o640, status.st_mtime_ns, status.st_ctime_ns)
    assert (shard.rank, shard.root, shard.adopt, shard.metadata) == (3, str(source), False, None)


@pytest.mark.parametrize(
    "name", [b"with space", b"new\nline", b"\xff\xfe", b"100%", "ü".encode(), b"%41", b" ", b"-rf"]
)
def test_any_name_is_kept(source: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(source), name)
    with open(path, "wb") as file:
        file.write(b"1")
    (staged,) = stage(source, 0).files
    staged.path.encode("utf-8")
    assert os.fsencode(layout.decode_path(staged.path)) == name


def test_a_directory_with_nothing_in_it_has_no_files(source: Path) -> None:
    assert stage(source, 0).files == ()


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointSourceError, match="does not exist"):
        stage(tmp_path / "nothing", 0)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointSourceError, match="is no directory"):
        stage(tmp_path / "file", 0)


def test_what_cannot_be_stored_is_refused_by_name(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(source / "pipe")
    with pytest.raises(CheckpointSourceError, match=r"source/pipe' is a named pipe.*remove it"):
        stage(source, 0)
    (source / "pipe").unlink()
    monkeypatch.chdir(source)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("socket")
        with pytest.raises(CheckpointSourceError, match=r"source/socket' is a socket"):
            stage(source, 0)


@pytest.mark.parametrize("target", ["a", "dir", "./dir/../a", "dangling", "dir/x", ".", "loop", "dir/up/a"])
def test_links_that_stay_inside_are_kept(source: Path, target: str) -> None:
    (source / "a").write_bytes(b"")
    (source / "dir").mkdir()
    (source / "dir/x").write_bytes(b"")
    (source / "dir/up").symlink_to("..")
    (source / "loop").symlink_to("loop")
    (source / "link").symlink_to(target)
    (found,) = (file for file in stage(source, 0).files if file.path == "link")
    assert (found.kind, found.target) == ("symlink", target)


def test_an_absolute_link_to_the_inside_becomes_relative(source: Path) -> None:
    (source / "d").mkdir()
    (source / "a").write_bytes(b"")
    (source / "d/link").symlink_to(source / "a")
    (source / "d/top").symlink_to(source)
    targets = {file.path: file.target for file in stage(source, 0).files if file.kind == "symlink"}
    assert targets == {"d/link": "../a", "d/top": "../."}


def test_an_absolute_link_through_another_name_of_the_directory_counts_as_inside(source: Path, tmp_path: Path) -> None:
    alias = tmp_path / "alias"
    alias.symlink_to(source)
    (source / "a").write_bytes(b"")
    (source / "link").symlink_to(source / "a")
    targets = [file.target for file in stage(alias, 0).files if file.kind == "symlink"]
    assert targets == ["a"]


@pytest.mark.parametrize("target", ["..", "../source/a", "/etc/passwd", "dir/../../x", "up/..", "deep/up/../x"])
def test_links_that_lead_out_are_refused_with_link_and_target(source: Path, target: str) -> None:
    (source / "dir").mkdir()
    (source / "deep/er").mkdir(parents=True)
    (source / "up").symlink_to(".")
    (source / "deep/up").symlink_to("..")
    (source / "link").symlink_to(target)
    with pytest.raises(CheckpointSourceError, match=rf"source/link' to '{target}' leads out .*copy what it points to"):
        stage(source, 0)


def test_a_link_by_way_of_another_cannot_lead_out(source: Path) -> None:
    (source / "d/e").mkdir(parents=True)
    (source / "d/e/top").symlink_to("../..")
    # By its text it stays inside: d/e/top/.. would be d/e. But `top` is the root, and `..` of that is not.
    (source / "sly").symlink_to("d/e/top/../outside")
    with pytest.raises(CheckpointSourceError, match="sly"):
        stage(source, 0)


def test_metadata_travels_beside_the_files(source: Path) -> None:
    (source / ".metadata.json").write_text('{"a": 1}')
    (source / "sub").mkdir()
    (source / "sub/.metadata.json").write_text("any file")
    shard = stage(source, 0)
    assert shard.metadata == '{"a": 1}'
    assert [file.path for file in shard.files] == ["sub/.metadata.json"]


@pytest.mark.parametrize("text", ["[1]", "no json", '"a"', ""])
def test_metadata_must_be_a_json_object(source: Path, text: str) -> None:
    (source / ".metadata.json").write_text(text)
    with pytest.raises(CheckpointSourceError, match="no JSON object"):
        stage(source, 0)


def test_a_restored_checkpoint_may_be_reported_again(source: Path) -> None:
    (source / ".manifest.json").write_bytes(encode_manifest(Manifest(id="1")))
    (source / "a").write_bytes(b"")
    assert [file.path for file in stage(source, 0).files] == ["a"]


def test_names_of_our_own_are_refused_for_other_things(source: Path) -> None:
    (source / ".manifest.json").write_text("mine")
    with pytest.raises(CheckpointSourceError, match=r"a name that Holdfast needs.*rename it"):
        stage(source, 0)
    (source / ".manifest.json").unlink()
    (source / ".metadata.json").symlink_to("a")
    with pytest.raises(CheckpointSourceError, match="is no regular file"):
        stage(source, 0)


def test_many_files_and_deep_directories_are_walked(source: Path) -> None:
    for number in range(50):
        directory = source / f"d{number}"
        directory.mkdir()
        for file in range(20):
            (directory / str(file)).touch()
    inner = os.open(source, os.O_RDONLY)
    for _ in range(1050):
        os.mkdir("d", dir_fd=inner)
        deeper = os.open("d", os.O_RDONLY, dir_fd=inner)
        os.close(inner)
        inner = deeper
    os.close(inner)
    try:
        shard = stage(source, 0)
        assert len(shard.files) == 1001
        assert [file.path for file in shard.files] == sorted(file.path for file in shard.files)
    finally:
        remove_tree(str(source))
