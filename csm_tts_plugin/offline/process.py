"""Starts, supervises and stops the child process of the offline models. Independent of LiveKit."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from typing import IO

from ..errors import ConfigError, UnavailableError

logger = logging.getLogger("csm_tts_plugin.offline")

OFFLINE_STT_URL = "CSM_OFFLINE_STT_URL"
OFFLINE_LLM_URL = "CSM_OFFLINE_LLM_URL"
"""Variables through which a worker tells its jobs the addresses; not for users."""

_READY_S = 120.0
_STOP_S = 5.0
_PAUSES_S = (0.2, 1.0, 5.0)
"""Delays before the first, second and each later restart in a row."""


class OfflineProcess:
    """Whisper, SmolLM2 or both in one process; restarted on the same ports after a crash."""

    def __init__(self, *, stt: bool, llm: bool) -> None:
        self._ports = {name: 0 for name, wanted in (("stt", stt), ("llm", llm)) if wanted}
        self._child: subprocess.Popen[str] | None = None
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None

    @property
    def stt_url(self) -> str:
        return f"http://127.0.0.1:{self._ports['stt']}"

    @property
    def llm_url(self) -> str:
        return f"http://127.0.0.1:{self._ports['llm']}/v1"

    def addresses(self, stt: str, llm: str) -> dict[str, str]:
        """The URLs of the running models, under the names `stt` and `llm`."""
        urls = {}
        if "stt" in self._ports:
            urls[stt] = self.stt_url
        if "llm" in self._ports:
            urls[llm] = self.llm_url
        return urls

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    def start(self) -> None:
        """Blocks until the models are loaded. Raises ConfigError, UnavailableError."""
        self._launch()
        self._watcher = threading.Thread(target=self._watch, name="offline-models", daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        """Ends the child; may be called twice, or before `start`."""
        self._stopping.set()
        if self._child is not None:
            _end(self._child)
        if self._watcher is not None:
            self._watcher.join(_STOP_S)

    def _launch(self) -> None:
        words = [sys.executable, "-m", "csm_tts_plugin.offline"]
        for name, port in self._ports.items():
            words += [f"--{name}-port", str(port)]
        child = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self._child = child
        assert child.stdout is not None
        answer = _first_line(child, child.stdout)
        if "error" in answer:
            _end(child)
            raise ConfigError(str(answer["error"]))
        if not answer:
            _end(child)
            raise UnavailableError(
                "The offline models did not start; see the lines above, or run `make setup` again."
            )
        self._ports = {name: int(str(answer[name])) for name in self._ports}

    def _watch(self) -> None:
        failures = 0
        while self._child is not None:
            code = self._child.wait()
            if self._stopping.is_set():
                return
            pause = _PAUSES_S[min(failures, len(_PAUSES_S) - 1)]
            logger.warning("the offline models ended (code %s); restart in %s s", code, pause)
            if self._stopping.wait(pause):
                return
            try:
                self._launch()
                failures = 0
            except (ConfigError, UnavailableError, OSError) as error:
                failures += 1
                logger.error("the offline models did not start: %s", error)


def _first_line(child: subprocess.Popen[str], output: IO[str]) -> dict[str, object]:
    """The first line of the child's output; {} if it ends or is silent for too long."""
    timer = threading.Timer(_READY_S, child.kill)
    timer.start()
    try:
        line = output.readline()
        answer = json.loads(line) if line.strip() else {}
    except ValueError:
        answer = {}
    finally:
        timer.cancel()
    return answer if isinstance(answer, dict) else {}


def _end(child: subprocess.Popen[str]) -> None:
    """Closes stdin, which ends the child; after `_STOP_S` sends SIGKILL."""
    if child.stdin is not None:
        child.stdin.close()
    try:
        child.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
