"""Whole calls like those of `make call`: the caller's waits, and how well replies are understood.

    python benchmarks/call.py [--calls 3] [--out FILE] [--picture FILE]

`held`: turns that the turn detector took for unfinished, so that endpointing used its longest
delay. They are excluded from the median and included in the 95th percentile. `--picture`: file for
the picture of the call with the median wait.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from common import ROOT, finish, machine, percentile, table

from scripts.call_turns import PARTS

HELD_S = 1.15
"""`max_delay` of `agent.py` is 1.2 s."""
_STT_LATE_S = 0.1
"""An end of turn that follows its transcript sooner than this waited for speech-to-text."""
FIGURES = ("e2e", "endpointing", "stt", "llm_ttft", "first_sentence", "tts_first_audio", "playout")
KEPT = (*FIGURES, "reply_wer", "like_caller", "like_stock", "interrupted", "parts", "underruns")


def one_call(out: Path) -> dict:
    """Make one call; returns its call.json. Raises SystemExit when the call fails."""
    env = {**os.environ, "OUT": str(out)}
    done = subprocess.run([sys.executable, "-m", "scripts.call"], cwd=ROOT, env=env, check=False)
    if done.returncode != 0:
        raise SystemExit(done.returncode)
    return json.loads((out / "call.json").read_text())


def is_held(turn: dict) -> bool:
    waited, transcribed = turn["endpointing"] or 0.0, turn["stt"] or 0.0
    return waited >= HELD_S and waited - transcribed >= _STT_LATE_S


def median_wait(report: dict) -> float:
    waits = [turn["e2e"] for turn in report["turns"] if not is_held(turn)]
    return statistics.median(waits or [turn["e2e"] for turn in report["turns"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=3)
    parser.add_argument("--out")
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    folders = [ROOT / "out" / "calls" / str(number) for number in range(1, args.calls + 1)]
    loads, reports = [], []
    for folder in folders:
        loads.append(round(os.getloadavg()[0], 1))
        reports.append(one_call(folder))
    turns = [turn for report in reports for turn in report["turns"]]
    free = [turn for turn in turns if not is_held(turn)]
    waits, rates = [turn["e2e"] for turn in free], [turn["reply_wer"] for turn in turns]
    heard = [rate for rate in rates if rate is not None]
    rows = [
        [label, *(f"{turn['parts'][name]:.2f}" for turn in turns)] for name, label in PARTS.items()
    ]
    rows.append(["whole", *(f"{turn['e2e']:.2f}" for turn in turns)])
    table("Seconds that the caller waited", ["part", *map(str, range(1, len(turns) + 1))], rows)
    if args.picture:
        middle = sorted(range(len(reports)), key=lambda at: median_wait(reports[at]))
        shutil.copyfile(folders[middle[len(middle) // 2]] / "call.png", args.picture)
    finish(
        {
            "what": "calls over a real LiveKit server",
            **machine(reports[0]["device"] or "cpu"),
            "load": loads,
            "median_e2e": round(statistics.median(waits), 3) if waits else None,
            "p95_e2e_all": round(percentile([turn["e2e"] for turn in turns], 0.95), 3),
            "held": len(turns) - len(free),
            "gaps": sum(turn["underruns"] for turn in turns),
            "median_wer": round(statistics.median(heard), 3) if heard else None,
            "calls": [
                [{name: turn[name] for name in KEPT} for turn in report["turns"]]
                for report in reports
            ],
        },
        args.out,
    )


if __name__ == "__main__":
    main()
