"""Runs `make call` as a user does, as a process, and reads its output files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from scripts import pins
from scripts.setup_tools import ROOT, TOOLS

CALL_LIMIT_S = 600
"""High, because the machine may be busy."""

# Unset for the tests: a developer's settings must not change what is tested.
OURS = ("CALLER", "OUT", "VOICE_SOURCE", "AGENT_STT", "AGENT_LLM", "CSM_MODEL", "CSM_ENGINE_URL")


@dataclass(frozen=True)
class Run:
    code: int
    output: str
    out: Path

    @property
    def report(self) -> dict:
        return json.loads((self.out / "call.json").read_text())

    @property
    def last_line(self) -> str:
        return self.output.strip().splitlines()[-1]


def run(words: list[str], env: dict[str, str], out: Path, limit_s: float = CALL_LIMIT_S) -> Run:
    """A command in the repository, bounded in time; its output is shown when the test fails."""
    clean = {name: value for name, value in os.environ.items() if name not in OURS}
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        env={**clean, "PYTHONUNBUFFERED": "1", "OUT": str(out), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit_s)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.communicate(timeout=30)
    print(output)
    return Run(process.returncode, output, out)


def recordings(*indices: int) -> str:
    """A value of CALLER: some of the recordings that set-up installs."""
    folder = TOOLS / pins.SPEECH_FOLDER
    return " ".join(str(folder / f"{pins.SPEECH[index].name}.wav") for index in indices)
