"""What the callbacks of the frameworks cost their training."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.measure import MIB, Limit, Measure, Sample
from benchmarks.side import Side

_EPOCHS = 6
"""One save each."""


def _fit(framework: str) -> Callable[[Side, Side | None], Sample]:
    def sample(us: Side, peer: Side | None) -> Sample:
        sides = {"none": us.named("holdfast_none"), "ours": us, "ours_async": us.named("holdfast_async")}
        if peer is not None:
            sides["peer"] = peer
        found: dict[str, float] = {}
        for whose, side in sides.items():
            outcome = side.run("framework_fit.py", framework, str(_EPOCHS))
            found[f"{whose}_s"] = outcome.usage.wall_s
            if whose != "none":
                found[f"{whose}_lost_per_save_s"] = (outcome.times["fit_s"] - found["none_fit_s"]) / _EPOCHS
                found[f"{whose}_mib_per_save"] = outcome.times["written_bytes"] / MIB / _EPOCHS
            else:
                found["none_fit_s"] = outcome.times["fit_s"]
        return found

    return sample


FRAMEWORK_MEASURES: tuple[Measure, ...] = tuple(
    Measure(
        name,
        f"{title} on 2 workers with a checkpoint of 96 MiB an epoch by its callback, and with none",
        _fit(name),
        (
            Limit("ours_s", at_most=1, of="peer_s"),
            Limit("ours_lost_per_save_s", at_most=1, of="peer_lost_per_save_s"),
            # Where both take the saving alone, they vary by as much.
            Limit("ours_async_lost_per_save_s", at_most=1.1, of="ours_lost_per_save_s"),
            Limit("ours_mib_per_save", at_most=1, of="peer_mib_per_save"),
        ),
    )
    for name, title in (("lightning", "Lightning"), ("transformers", "Transformers"))
)
