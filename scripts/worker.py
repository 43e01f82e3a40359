"""Runs `agent.py start` as a child of a script and waits until it can take calls."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from .children import Child
from .setup_tools import ROOT

WORKER_LIMIT_S = 900.0
"""Time for the worker to be ready, with the download of CSM-1B and the capture of CUDA graphs."""


class WorkerError(Exception):
    """`str(error)` is one line: why the agent does not run."""


class Progress:
    """Prints lines with the time since the start."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._began:5.1f} s] {text}", flush=True)


class Worker:
    """`agent.py start` as a child; `wait_ready` returns when it has registered with LiveKit."""

    def __init__(
        self,
        keys: Mapping[str, str],
        log: Path,
        progress: Progress,
        agent_name: str = "",
        program: Path = ROOT / "agent.py",
    ) -> None:
        """`keys`: the three LIVEKIT variables and any others."""
        self._progress = progress
        self._registered = threading.Event()
        env = {
            **os.environ,
            **keys,
            "AGENT_HEALTH": "127.0.0.1:0",
            "AGENT_NAME": agent_name,
            "CSM_MODEL": os.environ.get("CSM_MODEL") or "tiny",
            "PYTHONUNBUFFERED": "1",
        }
        words: list[str | Path] = [sys.executable, program, "start"]
        self.child = Child(words, log, env=env, on_line=self._read)

    def wait_ready(self) -> None:
        """Raises WorkerError with the worker's last message if it ends before it is ready."""
        until = time.monotonic() + WORKER_LIMIT_S
        while not self._registered.wait(0.2):
            if self.child.code is not None:
                raise WorkerError(self.last_word())
            if time.monotonic() > until:
                raise WorkerError(
                    f"The agent was not ready within {WORKER_LIMIT_S:.0f} s; see its log."
                )

    def last_word(self) -> str:
        """Its last message, which mostly names the reason why it ended."""
        line = self.child.last_line()
        return _message(line) or line

    def _read(self, line: str) -> None:
        if "registered worker" in line:
            self._registered.set()
        elif (message := _message(line)).startswith("engine") and not self._registered.is_set():
            self._progress.say(f"agent: {message}")


def _message(line: str) -> str:
    """The message of a line of LiveKit's JSON log; empty for other lines."""
    try:
        return str(json.loads(line)["message"])
    except (ValueError, KeyError, TypeError):
        return ""
