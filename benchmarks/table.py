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
    return (
        f"{os.cpu_count()} cores, {memory_gib:.0f} GiB of memory, {platform.system()} {platform.release().partition('-')[0]}, "
        f"Python {platform.python_version()}."
    )


def today() -> str:
    """The day of a measurement."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def earlier_rows(page: Path) -> dict[str, str]:
    """The rows that the page has, by the titles of their measures."""
    lines = page.read_text().partition(BEGIN)[2].partition(END)[0].splitlines()
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines if line.startswith("| ")}


def render(
    results: Mapping[str, tuple[str, Sequence[Sample]]], measures: Sequence[Measure], earlier: Mapping[str, str]
) -> str:
    """The table, one row a measure that has been run.

    Args:
        results: The day and the samples of each measure, by its name.
        earlier: The rows of those that have none.
    """
    rows = ["| measure | runs | median | bar | met | day |", "|---|---|---|---|---|---|"]
    for measure in measures:
        day, samples = results.get(measure.name, ("", ()))
        if not samples:
            if measure.title in earlier:
                rows.append(earlier[measure.title])
            continue
        found = medians(samples)
        figures = "<br>".join(f"{name} {_number(value)}" for name, value in found.items())
        bars = "<br>".join(limit.text() for limit in measure.limits)
        met = "<br>".join(_word(limit.holds(found)) for limit in measure.limits)
        rows.append(f"| {measure.title} | {len(samples)} | {figures} | {bars} | {met} | {day} |")
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
