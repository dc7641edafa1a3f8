from __future__ import annotations

from pathlib import Path

from holdfast.stores.base import Store
from holdfast.stores.local import LocalStore
from holdfast.testing.store import StoreContract


class TestLocalStore(StoreContract):
    def make_store(self, tmp_path: Path) -> Store:
        return LocalStore(tmp_path / "store")
