"""Measures Holdfast against Ray Train on this machine: `make bench`, or `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path

from benchmarks.measure import Measure, Sample
from benchmarks.measures import MEASURES
from benchmarks.process import JobError
from benchmarks.side import Side, ours, peer
from benchmarks.table import earlier_rows, medians, render, today, write

ROOT = Path(__file__).parent.parent


def main() -> int:
    """Runs what was asked for; the exit code says whether every job could be run."""
    options = _parse()
    # As Ctrl-C does, so that no job outlives us.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    chosen = [measure for measure in MEASURES if not options.only or measure.name in options.only]
    if options.plan:
        print("\n".join(f"{measure.name:10} {measure.title}" for measure in chosen))
        return 0
    other = None if options.no_peer else peer(options.peer_python)
    results: dict[str, list[Sample]] = {}
    known: dict[str, tuple[str, list[Sample]]] = {}
    failures = 0
    for measure in chosen:
        runs = 1 if options.quick else options.slow_runs if measure.is_slow and other is not None else options.runs
        samples, failure = _measure(measure, ours(), other, runs)
        results[measure.name] = samples
        if failure is not None:
            failures += 1
            print(f"{measure.name}: {failure}", file=sys.stderr)
        known = _keep(results)
    page = ROOT / "docs" / "benchmarks.md"
    table = render(known, MEASURES, earlier_rows(page))
    print(table)
    if options.write:
        write(page, table)
    return 1 if failures else 0


def _measure(measure: Measure, us: Side, other: Side | None, runs: int) -> tuple[list[Sample], JobError | None]:
    samples: list[Sample] = []
    for run in range(runs):
        begin = time.monotonic()
        try:
            samples.append(measure.sample(us, other))
        except JobError as error:
            return samples, error
        figures = "  ".join(f"{name}={value:.4g}" for name, value in samples[-1].items())
        print(f"{measure.name} {run + 1}/{runs} ({time.monotonic() - begin:.0f} s): {figures}", flush=True)
    if runs > 1:
        print(f"{measure.name} median: " + "  ".join(f"{k}={v:.4g}" for k, v in medians(samples).items()), flush=True)
    return samples, None


def _keep(results: dict[str, list[Sample]]) -> dict[str, tuple[str, list[Sample]]]:
    """Adds to what earlier runs on this machine found, and gives all of it: `--only` replaces single rows."""
    path = ROOT / "benchmarks" / "results" / "by-day.json"
    path.parent.mkdir(exist_ok=True)
    known: dict[str, tuple[str, list[Sample]]] = json.loads(path.read_text()) if path.exists() else {}
    known |= {name: (today(), samples) for name, samples in results.items() if samples}
    path.write_text(json.dumps(known, indent=2))
    return known


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--peer-python", default=str(ROOT / ".venv-peer" / "bin" / "python"), help="Python with Ray Train"
    )
    parser.add_argument("--no-peer", action="store_true", help="measure Holdfast alone")
    parser.add_argument(
        "--only", nargs="+", choices=[measure.name for measure in MEASURES], help="these measures alone"
    )
    parser.add_argument("--runs", type=int, default=5, help="runs of each measure (default 5)")
    parser.add_argument("--slow-runs", type=int, default=5, help="runs of those that wait for the peer (default 5)")
    parser.add_argument("--quick", action="store_true", help="one run each")
    parser.add_argument("--plan", action="store_true", help="list the measures and end")
    parser.add_argument("--no-write", dest="write", action="store_false", help="leave docs/benchmarks.md as it is")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
