from __future__ import annotations

from holdfast.persistence import layout
from holdfast.persistence.garbage import collect
from holdfast.stores import open_store
from support.failing_store import WatchedStore, refuse
from support.remote_like_store import RemoteLikeStore
from support.runs import hidden, names, open_run, report, visible, write_files


def _tree(root) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_what_dead_drivers_left_goes_and_the_users_own_files_stay(tmp_path) -> None:
    store = open_store(tmp_path)
    mine = {"notes.txt": b"", ".git/HEAD": b"", "sweep/x": b"", ".c.partial": b"", "c.deleting-1/x": b"", ".x.tmp": b""}
    write_files(tmp_path, mine)
    before = _tree(tmp_path)
    left = {
        ".c.partial-1.2/deep/f": b"",
        ".c.deleting-0a/f": b"",
        ".holdfast-0a-1-2.tmp": b"",
        ".holdfast/notes/gone.json": b"{}",
        ".holdfast/epochs/.holdfast-0a-1-3.tmp": b"",
    }
    write_files(tmp_path, left)
    removed = collect(store, epoch=7)
    assert sorted(removed) == sorted(
        [".c.partial-1.2", ".c.deleting-0a", *(key for key in left if key.startswith(".holdfast"))]
    )
    assert [path for path in _tree(tmp_path) if not path.startswith(".holdfast")] == before


def test_our_own_partial_and_what_was_set_aside_stay(tmp_path) -> None:
    write_files(tmp_path, {".c.partial-7.1/f": b"", ".c.damaged-0a/f": b""})
    assert collect(open_store(tmp_path), epoch=7) == []


def test_notes_of_checkpoints_that_are_there_stay(tmp_path) -> None:
    writer = open_run(tmp_path / "run")
    report(writer, tmp_path, {"f": b"1"})
    writer.close()
    assert collect(open_store(tmp_path / "run"), epoch=9) == []


def test_what_resists_is_left_for_the_next_start(tmp_path, caplog) -> None:
    write_files(tmp_path, {".a.partial-1.2/f": b"", ".b.partial-1.2/f": b""})
    store = WatchedStore(open_store(tmp_path), refuse(lambda _, key: key.startswith(".a.")))
    assert collect(store, epoch=7) == [".b.partial-1.2"]
    assert "next start" in caplog.text


def test_a_dead_attempts_shards_never_mix_with_a_smaller_retry(tmp_path) -> None:
    run = tmp_path / "run"
    for store in (open_store(run), RemoteLikeStore(tmp_path / "remote")):
        dead = open_run(store)
        checkpoint = dead.begin_checkpoint("c", 1)
        from holdfast.persistence.staging import stage

        for rank in range(4):
            write_files(tmp_path / f"s{rank}", {f"shard-{rank}": b"old"})
            checkpoint.store_shard(stage(tmp_path / f"s{rank}", rank)).result()
        dead._lease.release()  # as the kernel does when a process dies
        again = open_run(store)
        committed = report(again, tmp_path / "again", [{"shard-0": b"new"}, {"shard-1": b"new"}], name="c")
        assert committed.num_files == 2
        entries = [entry.key for entry in store.list("c", recursive=True)]
        assert sorted(entries) == ["c/.manifest.json", "c/shard-0", "c/shard-1"]
        assert again.latest_valid() == again.checkpoints()[-1]
        again.close()
        dead._uploader.close()
    assert visible(run) == ["c"]
    assert hidden(run) == []


def test_without_rename_only_marked_directories_are_ours(tmp_path) -> None:
    store = RemoteLikeStore(tmp_path)
    for name in ("ours", "mine"):
        store.write(f"{name}/f", b"")
    store.write(layout.pending_key("ours"), b"{}")
    store.write(layout.pending_key("gone"), b"{}")
    collect(store, epoch=1)
    assert [entry.key for entry in store.list(recursive=True)] == ["mine/f"]


def test_without_rename_a_mark_that_outlived_its_commit_harms_nothing(tmp_path) -> None:
    store = RemoteLikeStore(tmp_path)
    writer = open_run(store)
    report(writer, tmp_path / "source", {"f": b"1"}, name="c")
    writer.close()
    store.write(layout.pending_key("c"), b"{}")
    again = open_run(store)
    assert names(again) == ["c"]
    assert not store.exists(layout.pending_key("c"))
    again.close()
