"""All processes of a call end, however the call ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from scripts.setup_tools import ROOT
from tests.call.running import OURS
from tests.support.processes import descendants, parents, wait_until

pytestmark = [pytest.mark.call, pytest.mark.timeout(300)]


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
        assert wait_until(lambda: (tmp_path / "caller.log").exists())
        family = descendants(call.pid)
        assert len(family) > 4
        call.send_signal(ending)
        assert call.wait(60) != 0
    finally:
        call.kill()
        call.wait()
        call.stdout.close()
    assert wait_until(lambda: not family & parents().keys())
