"""However a call is ended, none of its processes is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.setup_tools import ROOT
from tests.call.running import OURS

pytestmark = [pytest.mark.call, pytest.mark.timeout(300)]


def parents() -> dict[int, int]:
    """Every process with its parent; those that are dead and not yet buried do not count."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rsplit(")", 1)[1].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            found[int(stat.parent.name)] = int(parent)
    return found


def descendants(pid: int) -> set[int]:
    family, all_parents = {pid}, parents()
    while more := {child for child, parent in all_parents.items() if parent in family} - family:
        family |= more
    return family


def wait_until(condition, limit_s: float) -> bool:
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_a_call_that_is_ended_by_a_signal_leaves_no_process(tmp_path, quick_engine, ending):
    clean = {name: value for name, value in os.environ.items() if name not in OURS}
    env = {**clean, **quick_engine, "OUT": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    call = subprocess.Popen(
        [sys.executable, "-m", "scripts.call"],
        cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        for line in call.stdout:
            if "the caller joins" in line:
                break
        assert wait_until(lambda: (tmp_path / "caller.log").exists(), 30)
        family = descendants(call.pid)
        assert len(family) > 4
        call.send_signal(ending)
        assert call.wait(60) != 0
    finally:
        call.kill()
        call.wait()
        call.stdout.close()
    assert wait_until(lambda: not family & parents().keys(), 60)
