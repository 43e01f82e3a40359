"""`make pictures`: makes all pictures of README and docs again.

They are the diagram of the parts, the timeline of a call (the median of three calls), and
screenshots of the web page in a call. Run it on an idle machine: the pictures show its latency.
"""

from __future__ import annotations

import os
import subprocess
import sys

from .setup_tools import ROOT

DOCS = ROOT / "docs"
BUSY = 1.0
"""Load average per core above which other processes would distort the figures in the pictures."""
MAKERS = (
    ("the diagram of the parts", ["docs/architecture.py"]),
    ("three calls", ["benchmarks/call.py", "--picture", str(DOCS / "call.png")]),
    ("the web page in a call", ["-m", "tests.web.pictures", str(DOCS)]),
)


def main() -> int:
    """The number of pictures that could not be made; each command prints its own reason."""
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    if load > BUSY:
        print(f"pictures: load is {load:.1f} per core; the pictures will show higher latency.")
    failed = 0
    for what, words in MAKERS:
        print(f"pictures: {what}", flush=True)
        failed += subprocess.run([sys.executable, *words], cwd=ROOT, check=False).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
