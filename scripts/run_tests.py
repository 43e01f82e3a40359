"""Runs the tests (`make test`): all of them in parallel lanes, or one pytest with ARGS.

A lane is a pytest process over some folders of `tests/`. Calls mostly wait in real time, so the
other lanes use the cores meanwhile. Each lane prints its progress at once and its report when it
ends; `out/tests` keeps the whole output.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from .setup_tools import ROOT

_PYTEST = (sys.executable, "-m", "pytest")
_COUNTS = re.compile(r"(\d+) (passed|failed|errors?|skipped)\b")
_SUMMARY = re.compile(r"=+ .*\bin [\d.]+s\b.* =+$")


@dataclass
class Lane:
    """One pytest process over `folders`. It has a lower priority unless `waits` is set."""

    name: str
    folders: tuple[str, ...]
    waits: bool = False
    """The tests run in real time and get the processor first."""
    cwd: Path = ROOT
    code: int = -1
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    _process: subprocess.Popen[str] | None = None

    def run(self, output: Path, shown: threading.Lock) -> None:
        """Runs to the end; `code` gets pytest's exit status."""
        began = time.monotonic()
        cache = ("-o", f"cache_dir=.pytest_cache/{self.name}")
        self._process = subprocess.Popen(
            [*_PYTEST, "--durations=8", *cache, *self.folders],
            cwd=self.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=None if self.waits else _yield_to_others,
        )
        report = self._follow(output / f"{self.name}.txt", shown)
        self.code = self._process.wait()
        self.seconds = time.monotonic() - began
        with shown:
            print(f"== {self.name}: {self.seconds:.0f} s", *report, sep="\n", flush=True)

    def _follow(self, kept: Path, shown: threading.Lock) -> list[str]:
        """Prints progress; returns the report, which starts at its first heading."""
        report: list[str] = []
        assert self._process is not None
        assert self._process.stdout is not None
        with kept.open("w") as file:
            for line in self._process.stdout:
                file.write(line)
                file.flush()
                line = line.rstrip("\n")
                if _SUMMARY.match(line):
                    self.counts = Counter({what: int(n) for n, what in _COUNTS.findall(line)})
                if report or (line.startswith("====") and "test session starts" not in line):
                    report.append(line)
                elif line:
                    with shown:
                        print(f"{self.name} | {line}", flush=True)
        return report

    def interrupt(self) -> None:
        """Sends SIGINT, so that pytest tears its fixtures down."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGINT)


def lanes() -> list[Lane]:
    """Three lanes of about the same duration: calls; servers, clients and the page; the rest."""
    # `web` is last: its whole call must not run at the same time as the first one of `call`.
    # Folders that only compute stand after it, because the calls are over before the models are.
    calls = ("call", "scripts", "training")
    servers = ("server", "client", "worker", "livekit", "chaos", "offline", "web", "voices", "wire")
    named = {*calls, *servers}
    found = sorted({path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")})
    rest = [name for name in found if name not in named]
    return [
        Lane("calls", _of_tests(calls), waits=True),
        Lane("servers", _of_tests(servers), waits=True),
        Lane("models", _of_tests(rest)),
    ]


def _of_tests(folders: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"tests/{folder}" for folder in folders)


def run(together: Sequence[Lane], output: Path) -> int:
    """Runs all lanes in parallel. Returns 0 if each passed, 130 after SIGINT or SIGTERM."""
    output.mkdir(parents=True, exist_ok=True)
    stopped: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        stopped.append(number)
        for lane in together:
            lane.interrupt()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    shown = threading.Lock()
    threads = [threading.Thread(target=lane.run, args=(output, shown)) for lane in together]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return _sum_up(together, interrupted=bool(stopped))


def _sum_up(together: Sequence[Lane], interrupted: bool) -> int:
    total: Counter[str] = Counter()
    for lane in together:
        total += lane.counts
        print(f"== {lane.name}: {_words(lane.counts)} in {lane.seconds:.0f} s", end="")
        print("" if lane.code == 0 else f"; pytest ended with {lane.code}")
    failed = [lane.name for lane in together if lane.code]
    print(
        f"== all: {_words(total)}{'; failed: ' + ', '.join(failed) if failed else ''}", flush=True
    )
    return 130 if interrupted else int(bool(failed))


def _words(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items()) or "no result"


def _yield_to_others() -> None:
    os.nice(10)
    # With autogroup scheduling, the nice value counts only within one session.
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text("10")


def main(arguments: Sequence[str]) -> int:
    os.environ["OMP_NUM_THREADS"] = "1"
    if arguments:
        os.execv(sys.executable, [*_PYTEST, "--durations=8", *arguments])
    return run(lanes(), ROOT / "out" / "tests")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
