"""Writes what was measured to docs/benchmarks.md."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.measure import Measure, Sample

BEGIN = "<!-- table: begin (written by make bench) -->"
END = "<!-- table: end -->"


def medians(samples: Sequence[Sample]) -> dict[str, float]:
    """The median of each figure over the runs that have it."""
    names = list(dict.fromkeys(name for sample in samples for name in sample))
    return {name: statistics.median(sample[name] for sample in samples if name in sample) for name in names}


def machine() -> str:
    """The machine, as far as the figures depend on it."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    return (
        f"{os.cpu_count()} cores, {memory_gib:.0f} GiB of memory, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}; {day}."
    )


def render(results: Mapping[str, Sequence[Sample]], measures: Sequence[Measure]) -> str:
    """The table, one row a measure that has been run."""
    rows = ["| measure | runs | median | bar | met |", "|---|---|---|---|---|"]
    for measure in measures:
        samples = results.get(measure.name)
        if not samples:
            continue
        found = medians(samples)
        figures = "<br>".join(f"{name} {_number(value)}" for name, value in found.items())
        bars = "<br>".join(limit.text() for limit in measure.limits)
        met = "<br>".join(_word(limit.holds(found)) for limit in measure.limits)
        rows.append(f"| {measure.title} | {len(samples)} | {figures} | {bars} | {met} |")
    return "\n".join(rows)


def write(page: Path, table: str) -> None:
    """Replaces what stands between the page's markers.

    Raises:
        ValueError: The page has no markers.
    """
    text = page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} lacks the lines {BEGIN!r} and {END!r} that the table goes between")
    written = page.with_suffix(".tmp")
    written.write_text(f"{before}{begin}\n\n{machine()}\n\n{table}\n\n{end}{after}")
    os.replace(written, page)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _word(holds: bool | None) -> str:
    return {True: "yes", False: "**no**", None: "not measured"}[holds]
