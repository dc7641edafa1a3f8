"""Makes `runs/v1`, the frozen run of format version 1; kept to show how it came to be, never to be run over it again.

PYTHONPATH=src:tests python tests/compat/make_v1.py tests/compat/runs/v1
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from holdfast.config import CheckpointConfig
from holdfast.metrics import encode_metrics
from holdfast.persistence.writer import RunWriter
from support.runs import open_run, report

CONFIG = CheckpointConfig(2, "validation/loss", "min")


def _report(writer: RunWriter, source: Path, index: int, loss: float) -> None:
    files = [
        {
            "model.bin": b"weights of report %d\n" % index * 3,
            "parts/rank-0": b"0",
            ".metadata.json": b'{"epoch": %d}' % index,
        },
        {"parts/rank-1": b"1" * index, "an odd%20name": b"x"},
    ]
    root = source / f"report-{index}-rank-0"
    root.mkdir(parents=True)
    (root / "latest").symlink_to("parts/rank-0")
    metrics = {"validation": {"loss": loss}, "bad": float("nan"), "step": index}
    report(writer, source, files, metrics, index=index)


def main() -> None:
    """Two drivers, a report without a checkpoint, links and odd names."""
    target = Path(sys.argv[1])
    if target.exists():
        raise SystemExit(f"{target} is there already, and frozen")
    with tempfile.TemporaryDirectory() as source:
        first = open_run(target, CONFIG, holder="a driver of long ago", configuration={"num_workers": "2"})
        for index, loss in ((1, 0.5), (2, 0.25), (3, 0.75)):
            _report(first, Path(source), index, loss)
        first.log_report(
            report=4, checkpoint=None, metrics=encode_metrics({"step": 4}), other_ranks=[encode_metrics({"step": -4})]
        )
        first.close()
        second = open_run(target, CONFIG, holder="a driver of long ago", configuration={"num_workers": "2"})
        _report(second, Path(source), 5, 0.125)
        second.close()
    os.unlink(target / ".holdfast" / "lock")


if __name__ == "__main__":
    main()
