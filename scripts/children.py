"""Child processes of a script. Each has a log and is always stopped when the script ends."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

_SET_PARENT_DEATH_SIGNAL = 1


def _die_with_parent() -> None:
    """On Linux the kernel sends the child SIGTERM when its parent dies, even by SIGKILL."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


class Child:
    """A process in its own process group; each line it prints goes to `log` and to `on_line`."""

    def __init__(
        self,
        words: Sequence[str | Path],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        self.log = log
        self._on_line = on_line or (lambda line: None)
        self._process = subprocess.Popen(
            [str(word) for word in words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(os.environ if env is None else env),
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.poll()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, limit_s: float) -> int | None:
        """The exit code after all output was read; None if it still runs after `limit_s`."""
        try:
            code = self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        self._reader.join(5)
        return code

    def last_line(self) -> str:
        """The last line of its output, which mostly names the reason why it ended."""
        self._reader.join(1)
        lines = self.log.read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "no output")

    def stop(self, grace_s: float = 15.0) -> None:
        """Sends SIGTERM to the process, and after `grace_s` SIGKILL to the whole group."""
        with suppress(ProcessLookupError):
            self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_s)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self.log.open("w") as log:
            for line in self._process.stdout:
                log.write(line)
                log.flush()
                self._on_line(line.rstrip())
