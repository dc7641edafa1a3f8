"""What every store must do, as tests: subclass `StoreContract`, say how a store is made, and let pytest collect it.

    class TestMyStore(StoreContract):
        def make_store(self, tmp_path):
            return MyStore(...)

What a store says that it cannot do (`Store.capabilities`) is not asked of it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from holdfast.errors import StorageError, StorageUnavailableError, StoreExistsError, StoreNotFoundError
from holdfast.stores.base import Store
from holdfast.testing.calls import NAMES, Recorder, expect, put
from holdfast.testing.reading import ReadingContract

__all__ = ["NAMES", "Recorder", "StoreContract", "expect", "put"]


class StoreContract(ReadingContract):
    """The suite. Each test gets a new, empty store."""

    def test_prepare_may_be_repeated(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        store.prepare()
        store.prepare()
        assert list(store.list()) == []

    def test_what_was_written_is_read(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        for name in NAMES:
            store.write(name, name.encode("utf-8", "surrogateescape"))
        for name in NAMES:
            assert store.read(name) == name.encode("utf-8", "surrogateescape")
            assert store.exists(name)
        assert {entry.key for entry in store.list(recursive=True)} == set(NAMES)

    def test_write_replaces_and_create_does_not(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        store.write("a/b", b"1")
        store.write("a/b", b"22")
        assert store.read("a/b") == b"22"
        expect(StoreExistsError, lambda: store.create("a/b", b"3"))
        assert store.read("a/b") == b"22"
        store.create("a/c", b"")
        assert store.read("a/c") == b""

    def test_readers_of_a_replaced_object_see_it_whole(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        if not store.capabilities.whole_replacement:
            return
        versions = [bytes([number]) * 50_000 for number in range(20)]
        store.write("x", versions[0])
        seen: set[bytes] = set()
        done = threading.Event()

        def look() -> None:
            while not done.is_set():
                seen.add(store.read("x"))

        reader = threading.Thread(target=look)
        reader.start()
        try:
            for version in versions:
                store.write("x", version)
        finally:
            done.set()
            reader.join()
        assert seen <= set(versions)

    def test_of_many_creators_one_wins(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        if not store.capabilities.exclusive_create:
            return
        for round_number in range(10):
            key = f"epochs/{round_number}"
            won: list[int] = []
            start = threading.Barrier(4)

            def create(number: int, key: str, start: threading.Barrier, won: list[int]) -> None:
                start.wait()
                try:
                    store.create(key, str(number).encode())
                except StoreExistsError:
                    return
                won.append(number)

            threads = [threading.Thread(target=create, args=(number, key, start, won)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(won) == 1
            assert store.read(key) == str(won[0]).encode()

    def test_what_is_missing_is_said_to_be_missing(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        store.write("file", b"")
        for key in ("nothing", "no/such/directory", "file/below"):
            expect(StoreNotFoundError, lambda key=key: store.read(key))  # type: ignore[misc]
            expect(StoreNotFoundError, lambda key=key: store.open_read(key))  # type: ignore[misc]
            assert not store.exists(key)
            store.delete(key)
            store.delete_tree(key)
            assert list(store.list(key)) == []

    def test_open_read_seeks(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        store.write("a", b"0123456789")
        with store.open_read("a") as file:
            assert file.read(2) == b"01"
            file.seek(-3, os.SEEK_END)
            assert file.read() == b"789"

    def test_a_large_file_is_read_from_anywhere(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        data = os.urandom(20 * 1024 * 1024 + 1)
        put(store, "large", tmp_path, data)
        with store.open_read("large") as file:
            assert file.read(10) == data[:10]
            for position in (6_000_000, 15_000_001, 1_000, len(data) - 5):
                file.seek(position)
                assert file.read(2_000_000) == data[position : position + 2_000_000]
            file.seek(0)
            pieces = list(iter(lambda: file.read(300_000), b""))
        assert b"".join(pieces) == data

    def test_files_arrive_with_every_byte_hashed_once(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        for size_bytes in (0, 1, 4096, 256 * 1024, 256 * 1024 + 1, 5 * 1024 * 1024 + 7):
            data = os.urandom(size_bytes)
            recorder = Recorder()
            put(store, f"d/{size_bytes}", tmp_path, data, hasher=recorder)
            assert store.read(f"d/{size_bytes}") == data
            assert bytes(recorder.data) == data

    def test_holes_are_hashed_as_zeros(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        source = tmp_path / "sparse"
        for size_bytes in (3 * 1024 * 1024, 9 * 1024 * 1024):
            with source.open("wb") as file:
                file.seek(1024 * 1024)
                file.write(b"data")
                file.truncate(size_bytes)
            recorder = Recorder()
            put(store, f"sparse-{size_bytes}", tmp_path, None, source=source, hasher=recorder)
            assert bytes(recorder.data) == source.read_bytes() == store.read(f"sparse-{size_bytes}")

    def test_put_file_never_overwrites(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        put(store, "a", tmp_path, b"first")
        recorder = Recorder()
        expect(StoreExistsError, lambda: put(store, "a", tmp_path, b"second", hasher=recorder))
        assert store.read("a") == b"first"
        assert not recorder.data

    def test_a_source_that_ends_early_leaves_nothing(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        for size_bytes in (10, 8 * 1024 * 1024):
            expect(StorageError, lambda size=size_bytes: put(store, "a", tmp_path, b"123", size_bytes=size))  # type: ignore[misc]
            assert not store.exists("a")

    def test_a_hasher_that_gives_up_leaves_nothing(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)

        class GivesUp(Exception):  # noqa: N818 - not an error
            pass

        class Hasher:
            def update(self, data: bytes | bytearray | memoryview, /) -> None:
                raise GivesUp

        for size_bytes in (10, 8 * 1024 * 1024):
            data = bytes(b"x" * size_bytes)
            expect(GivesUp, lambda data=data: put(store, "a", tmp_path, data, hasher=Hasher()))  # type: ignore[misc]
            assert not store.exists("a")

    def test_adopting_takes_the_bytes_or_says_no(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        source = tmp_path / "mine"
        source.write_bytes(b"mine")
        if store.adopt_file("d/a", str(source)):
            source.unlink()
            assert store.read("d/a") == b"mine"
            source.write_bytes(b"other")
            expect(StoreExistsError, lambda: store.adopt_file("d/a", str(source)))
            assert store.read("d/a") == b"mine"
        else:
            assert not store.exists("d/a")

    def test_links_are_real_or_not_there(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        store.put_symlink("d/link", "../target")
        store.put_symlink("d/link", "../target")
        if not store.capabilities.links:
            assert not store.exists("d/link")
            return
        path = store.local_path("d/link")
        assert path is None or os.readlink(path) == "../target"
        expect(StoreExistsError, lambda: store.put_symlink("d/link", "elsewhere"))

    def test_a_file_in_the_place_of_a_directory_is_in_the_way(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        if store.local_path() is None:
            return
        store.write("a", b"file")
        expect(StoreExistsError, lambda: put(store, "a/b", tmp_path, b"x"))
        expect(StoreExistsError, lambda: store.make_directory("a"))
        expect(StoreExistsError, lambda: store.put_symlink("a/b", "x"))
        assert store.read("a") == b"file"

    def test_listing_has_sizes_and_one_level(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        store.write("top", b"12")
        store.write("d/one", b"1")
        store.write("d/e/two", b"22")
        found = {entry.key: (entry.size_bytes, entry.is_directory) for entry in store.list()}
        assert found == {"top": (2, False), "d": (0, True)}
        found = {entry.key: (entry.size_bytes, entry.is_directory) for entry in store.list("d", recursive=True)}
        assert found == {"d/one": (1, False), "d/e/two": (2, False)}

    def test_a_child_is_the_same_store_further_down(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        child = store.child("run").child("checkpoint")
        child.write("a", b"1")
        assert store.read("run/checkpoint/a") == b"1"
        assert [entry.key for entry in child.list()] == ["a"]
        assert child.url == f"{store.url}/run/checkpoint"

    def test_deleting_a_tree_spares_its_neighbours(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        for key in ("a/1", "a/b/2", "ab/3", "a.txt"):
            store.write(key, b"")
        store.delete_tree("a")
        store.delete("a.txt")
        assert {entry.key for entry in store.list(recursive=True)} == {"ab/3"}

    def test_many_are_deleted_and_no_others(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        for key in ("a/x", "a/y", "a/ü &+%", "a/z", "b"):
            store.write(key, b"1")
        store.delete_many(["a/x", "a/ü &+%", "a/gone already", "b"])
        assert sorted(entry.key for entry in store.list(recursive=True)) == ["a/y", "a/z"]
        store.delete_many(["a/gone already"])
        store.delete_many([])

    def test_trees_deleted_by_several_at_once_are_gone(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        for number in range(200):
            store.write(f"t/{number % 7}/{number}", b"")
        errors: list[BaseException] = []

        def remove() -> None:
            try:
                store.delete_tree("t")
                list(store.list("t", recursive=True))
            except BaseException as error:  # noqa: BLE001 - shown by the test
                errors.append(error)

        threads = [threading.Thread(target=remove) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert list(store.list("t", recursive=True)) == []

    def test_a_rename_moves_all_and_never_replaces(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        if not store.capabilities.atomic_rename:
            return
        store.write("old/a", b"1")
        store.write("taken/b", b"2")
        store.make_directory("empty")
        for target in ("taken", "empty"):
            expect(StoreExistsError, lambda target=target: store.rename("old", target))  # type: ignore[misc]
        store.rename("old", "new")
        assert not store.exists("old")
        assert store.read("new/a") == b"1"
        expect(StoreNotFoundError, lambda: store.rename("old", "other"))

    def test_appended_bytes_follow_one_another(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        if not store.capabilities.append:
            return
        for part in (b"one\n", b"two\n"):
            handle = store.open_append("logs/a")
            handle.write(part)
            assert store.read("logs/a").endswith(part)
            handle.close()
            handle.close()
        assert store.read("logs/a") == b"one\ntwo\n"

    def test_a_lock_has_one_holder_and_says_who(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        if not store.capabilities.kernel_lock:
            return
        first = store.lock("d/lock", "the first")
        assert not isinstance(first, str)
        assert store.lock("d/lock", "the second") == "the first"
        first.release()
        first.release()
        second = store.lock("d/lock", "the second")
        assert not isinstance(second, str)
        with second:
            assert store.lock("d/lock", "the third") == "the second"
        third = store.lock("d/lock", "the third")
        assert not isinstance(third, str)
        third.release()

    def test_what_was_put_is_confirmed_and_what_was_not_is_missed(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        sizes = {f"d/{number}": 10 * number for number in range(3)} | {"a b ü %": 1}
        for key, size_bytes in sizes.items():
            put(store, f"c/{key}", tmp_path, b"x" * size_bytes)
        store.confirm("c", sizes)
        if type(store).confirm is not Store.confirm:
            expect(StorageUnavailableError, lambda: store.confirm("c", {**sizes, "other": 1}))
            expect(StorageError, lambda: store.confirm("c", {**sizes, "d/1": 11}))

    def test_many_are_begun_before_the_first_is_waited_for(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        put(store, "c/3", tmp_path, b"there")
        objects = {f"c/{number}": os.urandom(number * 100) for number in range(20)}
        waits: dict[str, Callable[[], None]] = {}
        with ExitStack() as stack:
            hashers = {key: Recorder() for key in objects}
            for key, data in objects.items():
                path = tmp_path / key.replace("/", "-")
                path.write_bytes(data)
                file = stack.enter_context(path.open("rb"))
                wait = store.begin_put_file(key, file.fileno(), size_bytes=len(data), mode=0o644, hasher=hashers[key])
                assert (wait is not None) <= store.capabilities.asks_ahead
                if wait is not None:
                    waits[key] = wait
            if "c/3" in waits:
                expect(StoreExistsError, waits.pop("c/3"))
                assert hashers["c/3"].data == b""
            for key, wait in waits.items():
                wait()
                assert bytes(hashers[key].data) == objects[key] == store.read(key)
        assert store.read("c/3") == b"there"

    def test_a_copy_has_the_bytes_of_what_was_confirmed_and_replaces_nothing(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        put(store, "c/a b ü %", tmp_path, b"data")
        tag = store.confirm("c", {"a b ü %": 4}).get("a b ü %")
        if not store.capabilities.copies or tag is None:
            assert not store.copy("c/a b ü %", "d/e", 4, "")
            return
        assert store.copy("c/a b ü %", "d/e", 4, tag)
        assert store.read("d/e") == store.read("c/a b ü %") == b"data"
        expect(StoreExistsError, lambda: store.copy("c/a b ü %", "d/e", 4, tag))
        assert not store.copy("c/nothing", "d/f", 4, tag)
        store.write("c/a b ü %", b"DATA")
        assert not store.copy("c/a b ü %", "d/f", 4, tag)
        assert not store.exists("d/f")

    def test_sync_takes_files_links_and_directories(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        keys = [f"c/{number % 3}/{number}" for number in range(20)]
        for key in keys:
            store.write(key, b"x")
        store.put_symlink("c/link", "0")
        if store.capabilities.links:
            keys.append("c/link")
        store.sync("c", keys)
        store.sync("c", [])
