"""Results of the long tests for `make soak`: one JSON file per test in the folder SOAK_OUT.

python -m tests.chaos.figures out/soak      # a table, then one line of JSON
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def record(name: str, **figures: object) -> None:
    """Prints the figures, and writes them where `make soak` reads them."""
    print(f"{name}: {json.dumps(figures)}")
    if folder := os.environ.get("SOAK_OUT"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, f"{name}.json").write_text(json.dumps(figures) + "\n")


def resident(pid: int | str = "self") -> float:
    """Resident memory of a process in MiB; 0 where the system does not report it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def descriptors_of(pid: int) -> int:
    """Number of open files and sockets of a process; 0 where the system does not report it."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def slope(moments: list[float], values: list[float]) -> float:
    """Least squares: growth of `values` per second."""
    middle, mean = sum(moments) / len(moments), sum(values) / len(values)
    spread = sum((moment - middle) ** 2 for moment in moments)
    pairs = zip(moments, values, strict=True)
    return sum((moment - middle) * (value - mean) for moment, value in pairs) / spread


def main() -> None:
    found = sorted(Path(sys.argv[1]).glob("*.json"))
    results = {path.stem: json.loads(path.read_text()) for path in found}
    for name, figures in results.items():
        print(f"\n{name}")
        for label, value in figures.items():
            print(f"  {label.replace('_', ' '):<40} {value}")
    print(json.dumps({"benchmark": "soak", "cores": os.cpu_count(), **results}), flush=True)


if __name__ == "__main__":
    main()
