"""The part of `StoreContract` that reads files: in chunks, in parts, many at once."""

from __future__ import annotations

import os
from pathlib import Path

from holdfast.errors import StoreNotFoundError
from holdfast.stores.base import PartRefusedError, Store
from holdfast.testing.calls import expect, put


class ReadingContract:
    """See `StoreContract`, which has these tests, too."""

    def make_store(self, tmp_path: Path) -> Store:
        """A new store with nothing in it; files of the test's own go elsewhere below `tmp_path`."""
        raise NotImplementedError("say how a store is made")

    def test_chunks_are_all_of_an_object_whatever_was_expected(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        for size_bytes in (0, 5, (9 << 20) + 1):
            data = os.urandom(size_bytes)
            put(store, f"c/{size_bytes}", tmp_path, data)
            for expected in (size_bytes, 7, 12 << 20):
                found = b"".join(bytes(chunk) for chunk in store.chunks(f"c/{size_bytes}", expected))
                assert found == data
        for expected in (5, 5 << 20):
            expect(StoreNotFoundError, lambda: list(store.chunks("c/nothing", expected)))  # noqa: B023
        given = store.chunks(f"c/{(9 << 20) + 1}", (9 << 20) + 1)
        assert len(next(given)) > 0
        del given

    def test_many_are_asked_for_before_the_first_is_waited_for(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        objects = {f"c/{number}": os.urandom(number * 100) for number in range(20)}
        for key, data in objects.items():
            put(store, key, tmp_path, data)
        begun = {key: store.begin_read(key, len(objects.get(key, b"none"))) for key in ("c/nothing", *objects)}
        expect(StoreNotFoundError, begun.pop("c/nothing").wait)
        assert {key: bytes(each.wait()) for key, each in begun.items()} == objects
        for key in objects:  # whoever has no use for it any more says so, and may ask again
            store.begin_read(key, 1).cancel()
        assert bytes(store.begin_read("c/3", 300).wait()) == objects["c/3"]
        # Whatever was expected: all of a shorter one, and of a longer one that much at least.
        for key in ("c/0", "c/1"):
            assert bytes(store.begin_read(key, 1000).wait()) == objects[key]
        assert bytes(store.begin_read("c/3", None).wait()) == objects["c/3"]
        for expected in (0, 5):
            assert bytes(store.begin_read("c/3", expected).wait())[:expected] == objects["c/3"][:expected]

    def test_parts_of_an_object_are_its_bytes(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        size_bytes = (17 << 20) + 1
        data = os.urandom(size_bytes)
        put(store, "c/whole", tmp_path, data)
        if not store.capabilities.parts:
            expect(PartRefusedError, lambda: list(store.part("c/whole", size_bytes, 0, 5)))
            return
        try:
            for start, end in ((0, 5), (5, 9 << 20), (1 << 20, size_bytes), (size_bytes - 1, size_bytes)):
                found = b"".join(bytes(chunk) for chunk in store.part("c/whole", size_bytes, start, end))
                assert found == data[start:end]
        except PartRefusedError:  # a server that does not answer for parts, as only its answer shows
            assert b"".join(bytes(chunk) for chunk in store.chunks("c/whole", size_bytes)) == data
            return
        expect(PartRefusedError, lambda: list(store.part("c/whole", size_bytes - 1, 0, 5)))
        expect(StoreNotFoundError, lambda: list(store.part("c/nothing", 9, 0, 5)))
