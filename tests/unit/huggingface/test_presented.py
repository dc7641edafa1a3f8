"""Files are shown below another name: linked, moved, or copied where neither can be done."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast import DataParallelTrainer, RunConfig, ScalingConfig
from holdfast.huggingface.transformers import presented

PATHS = ["model.bin", "part/shard.bin"]


def inside(tmp_path: Path, function: Callable[[], None]) -> None:
    run_config = RunConfig(name="run", storage_path=tmp_path / "runs", progress="quiet")
    DataParallelTrainer(function, scaling_config=ScalingConfig(num_workers=0), run_config=run_config).fit()


def saved(output_dir: Path) -> Path:
    source = output_dir / "checkpoint-1"
    (source / "part").mkdir(parents=True)
    for path in PATHS:
        (source / path).write_bytes(path.encode())
    return source


def inodes(directory: str | Path) -> list[int]:
    return [Path(directory, path).stat().st_ino for path in PATHS]


def assert_only(output_dir: Path, *names: str) -> None:
    assert sorted(os.listdir(output_dir)) == sorted(names)


def test_linked_files_stay(tmp_path: Path) -> None:
    source = saved(tmp_path / "out")
    with presented.linked(str(tmp_path / "out"), str(source), PATHS, "checkpoint") as found:
        assert inodes(f"{found.directory}/checkpoint") == inodes(source)
        assert not found.is_ours
    assert [(source / path).read_bytes() for path in PATHS] == [path.encode() for path in PATHS]
    assert_only(tmp_path / "out", "checkpoint-1")


def test_without_links_they_are_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(tmp_path / "out")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    def work() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "link", refuse)
            with presented.linked(str(tmp_path / "out"), str(source), PATHS, "checkpoint") as found:
                assert found.is_ours
                assert [Path(found.directory, "checkpoint", path).read_bytes() for path in PATHS] == [
                    path.encode() for path in PATHS
                ]

    inside(tmp_path, work)
    assert_only(tmp_path / "out", "checkpoint-1")


def test_moved_files_are_gone(tmp_path: Path) -> None:
    source = saved(tmp_path / "out")

    def work() -> None:
        before = inodes(source)
        with presented.moved(str(tmp_path / "out"), str(source), PATHS, "checkpoint") as found:
            assert found.is_ours
            assert inodes(f"{found.directory}/checkpoint") == before

    inside(tmp_path, work)
    assert_only(tmp_path / "out")


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no second file system")
def test_from_another_file_system_they_are_linked_and_then_removed(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        source = saved(Path(other))

        def work() -> None:
            before = inodes(source)
            with presented.moved(other, str(source), PATHS, "checkpoint") as found:
                assert not found.is_ours
                assert inodes(f"{found.directory}/checkpoint") == before == inodes(source)

        inside(tmp_path, work)
        assert_only(Path(other))


def test_what_another_rank_has_not_reported_yet_stays(tmp_path: Path) -> None:
    source = saved(tmp_path / "out")

    def work() -> None:
        with presented.moved(str(tmp_path / "out"), str(source), PATHS[:1], "checkpoint"):
            pass

    inside(tmp_path, work)
    assert (source / PATHS[1]).exists()


def test_litter_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "_holdfast-abc" / "checkpoint").mkdir(parents=True)
    (tmp_path / "_mine").mkdir()
    presented.remove_litter(str(tmp_path))
    assert_only(tmp_path, "_mine", "checkpoint-1")
