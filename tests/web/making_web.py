"""`make web` as a process, and recordings for the browser's microphone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import soundfile

from scripts.setup_tools import ROOT
from tests.call.running import OURS
from tests.support.processes import descendants
from tests.support.recordings import READER, path_of

OTHERS = ("LIVEKIT_URL", "LIVEKIT_API_KEY", "LIVEKIT_API_SECRET", "WEB_HOST", "WEB_LIVEKIT_URL")
"""Emptied for the tests: a developer's settings must not change what is tested."""


def clean_env(**more: str) -> dict[str, str]:
    # Empty, not unset: a developer's .env sets unset variables.
    ours = dict.fromkeys((*OURS, *OTHERS, "AGENT_NAME"), "")
    return {**os.environ, **ours, "PORT": "0", "PYTHONUNBUFFERED": "1", **more}


class Web:
    """`with Web(out) as web:` is ready for calls at `web.url`. Raises AssertionError if it ends."""

    def __init__(self, out: Path, **env: str) -> None:
        self.out = out
        self.lines: list[str] = []
        self.url = ""
        self._env = clean_env(OUT=str(out), CSM_MODEL="tiny", **env)

    def __enter__(self) -> Web:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "scripts.web"],
            cwd=ROOT,
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        ready = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(ready,), daemon=True)
        self._reader.start()
        if not ready.wait(300) or not self.url:
            self.__exit__()
            raise AssertionError(f"make web did not become ready: {self.lines}")
        self.family = descendants(self._process.pid)
        return self

    def stop(self) -> int:
        """Stops it as Ctrl-C does; the exit code."""
        self._process.send_signal(signal.SIGINT)
        code = self._process.wait(90)
        self._reader.join(10)
        return code

    def freeze_network(self, frozen: bool) -> None:
        """Stops the LiveKit server, which all packets of the call pass, or lets it run again."""
        for pid in self.family:
            if _name_of(pid) == "livekit-server":
                os.kill(pid, signal.SIGSTOP if frozen else signal.SIGCONT)

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.freeze_network(False) if hasattr(self, "family") else None
            self._process.terminate()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._reader.join(10)

    def _read(self, ready: threading.Event) -> None:
        for line in self._process.stdout:
            self.lines.append(line.rstrip())
            if "open http://" in line:
                self.url = line.split("open ")[1].split()[0]
                ready.set()
        ready.set()


def _name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Microphone:
    """The file that Chromium plays, from its beginning, each time the page opens a microphone.

    The page closes it when muted: when the caller unmutes, the current content is played once.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.put(np.zeros(1600, np.float32), 16_000)

    def put(self, samples: np.ndarray, rate: int) -> None:
        quiet = np.zeros(rate // 5, np.float32)
        fresh = self.file.with_suffix(".new.wav")
        soundfile.write(fresh, np.concatenate([quiet, samples, quiet]), rate, subtype="PCM_16")
        fresh.replace(self.file)

    def say(self, index: int) -> None:
        """One of the reader's recordings."""
        self.put(*soundfile.read(path_of(READER[index]), dtype="float32"))
