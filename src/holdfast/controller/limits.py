"""What bounds an attempt."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.controller.rounds import Bounds


@dataclass(frozen=True)
class Limits:
    """How long an attempt waits for ranks, in seconds, and how far it lets them go ahead; see `RunConfig`."""

    late_rank_warning_s: float
    late_rank_timeout_s: float | None
    stop_grace_s: float
    pending: Bounds
    raises_upload_errors: bool
