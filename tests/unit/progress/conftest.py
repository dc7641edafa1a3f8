from __future__ import annotations

import pytest

from holdfast.progress import writer
from support.waiting import LIMIT_S


@pytest.fixture(autouse=True)
def _all_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end waits for the display's thread however busy this machine is."""
    monkeypatch.setattr(writer, "_CLOSE_S", LIMIT_S)
