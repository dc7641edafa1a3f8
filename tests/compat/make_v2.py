"""Makes `runs/v2`, the frozen run of format version 2; kept to show how it came to be, never to be run over it again.

PYTHONPATH=src:tests python tests/compat/make_v2.py tests/compat/runs/v2

What is new in it is the digest of large files. Such a file is left out of the repository: `weights` makes it again.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from support.runs import open_run, report

LARGE = "checkpoint_000001/weights.bin"


def weights() -> bytes:
    """The content of the large file: 33 MiB and a little."""
    return b"".join(b"%07d\n" % number for number in range(4_325_400))


def main() -> None:
    """One driver, one checkpoint."""
    target = Path(sys.argv[1])
    if target.exists():
        raise SystemExit(f"{target} is there already, and frozen")
    with tempfile.TemporaryDirectory() as source:
        writer = open_run(target, holder="a driver of long ago", configuration={"num_workers": "1"})
        report(writer, Path(source), {"weights.bin": weights(), "small": b"small"}, {"loss": 0.5})
        writer.close()
    os.unlink(target / ".holdfast" / "lock")
    os.unlink(target / LARGE)


if __name__ == "__main__":
    main()
