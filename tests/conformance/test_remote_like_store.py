from __future__ import annotations

from pathlib import Path

from holdfast.stores.base import Store
from holdfast.testing.store import StoreContract
from support.remote_like_store import RemoteLikeStore


class TestRemoteLikeStore(StoreContract):
    def make_store(self, tmp_path: Path) -> Store:
        return RemoteLikeStore(tmp_path / "remote")
