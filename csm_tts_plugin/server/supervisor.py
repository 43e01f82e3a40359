"""Runs an engine as a child process: starts, watches and restarts it.

The child ends with its parent in two ways: by the kernel's parent-death signal (Linux), and by the
end of its standard input, which only the parent holds open. The key is passed in the environment,
because command lines are readable by all users.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from ..config import EngineConfig, ServerConfig
from ..errors import CsmError, UnavailableError
from .report import read_event, read_failure

logger = logging.getLogger("csm_tts_plugin.supervisor")

_COMMAND = (sys.executable, "-m", "csm_tts_plugin", "serve")
_BACKOFF_S = (0.25, 10.0)
_STEADY_S = 60.0
"""An engine that ran this long is restarted without the delay of repeated failures."""


class EngineProcess:
    """One engine process. All methods may be called from any thread.

    `server.port` 0: a free port, the same after restarts. `server.key` None: a random key.
    `on_progress` gets lines for people, on a thread of the supervisor. If the first start fails
    nothing is tried again; an engine that was ready once is restarted without limit.
    """

    def __init__(
        self,
        config: EngineConfig,
        server: ServerConfig | None = None,
        *,
        start_timeout: float = 600.0,
        on_progress: Callable[[str], None] | None = None,
        command: Sequence[str] = _COMMAND,
    ) -> None:
        server = server or ServerConfig(port=0)
        self._config = config
        self._server = server if server.keys else replace(server, key=secrets.token_urlsafe(32))
        self._start_timeout = start_timeout
        self._on_progress = on_progress or (lambda line: logger.info("%s", line))
        self._command = tuple(command)
        self._port = server.port
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._ready: Future[str] = Future()
        self._was_ready = False
        self._restarts = 0
        self._stopping = threading.Event()
        # A thread that lives as long as the child: for the parent-death signal, the kernel takes
        # the thread that forked for the parent.
        self._thread = threading.Thread(target=self._supervise, name="csm-supervisor", daemon=True)

    @property
    def key(self) -> str:
        """The key of its clients."""
        return self._server.keys[0]

    @property
    def url(self) -> str:
        """Its URL. Raises UnavailableError before it is known."""
        if not self._port:
            raise UnavailableError("The engine is still starting.", retry_after=1.0)
        host = self._server.host
        return f"http://[{host}]:{self._port}" if ":" in host else f"http://{host}:{self._port}"

    @property
    def restarts(self) -> int:
        """How often it had to be started again."""
        return self._restarts

    @property
    def pid(self) -> int | None:
        """The id of the running process, None if there is none."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Begin to start the process; returns at once. May be called once."""
        self._thread.start()

    def wait_ready(self, timeout: float | None = None) -> str:
        """Block until the engine is ready; returns its URL.

        Raises the error of a failed start (ConfigError, ModelLoadError, ...), or UnavailableError
        after `timeout` seconds or when it was stopped.
        """
        try:
            return self._ready.result(timeout)
        except TimeoutError:
            raise _late(timeout) from None

    async def ready(self, timeout: float | None = None) -> str:
        """`wait_ready` for asyncio."""
        waiting = asyncio.wrap_future(self._ready)
        waiting.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            return await asyncio.wait_for(asyncio.shield(waiting), timeout)
        except TimeoutError:
            raise _late(timeout) from None

    def stop(self, grace: float = 5.0) -> None:
        """Let it finish its utterances for at most `grace` seconds, then kill it."""
        self._stopping.set()
        with self._lock:
            process = self._process
        if process is not None:
            _signal(process, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(grace)
            _signal(process, signal.SIGKILL)
        if self._thread.is_alive():
            self._thread.join(grace)
        self._settle(UnavailableError("The engine was stopped."))

    async def astop(self, grace: float = 5.0) -> None:
        """`stop` for asyncio; the process is ended even if this is cancelled."""
        await asyncio.shield(asyncio.to_thread(self.stop, grace))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # The supervisor's thread

    def _supervise(self) -> None:
        delay = _BACKOFF_S[0]
        while not self._stopping.is_set():
            began = time.monotonic()
            error = self._live()
            if self._stopping.is_set():
                return
            if not self._was_ready:
                return self._settle(error)
            if time.monotonic() - began > _STEADY_S:
                delay = _BACKOFF_S[0]
            self._restarts += 1
            logger.warning("%s It is started again in %.2f s.", error.message, delay)
            self._stopping.wait(delay)
            delay = min(2 * delay, _BACKOFF_S[1])

    def _live(self) -> CsmError:
        """Run the process once; returns why it ended."""
        try:
            process = self._spawn()
        except OSError as error:
            return UnavailableError(f"No engine process can be started ({error.strerror}).")
        if process is None:
            return UnavailableError("The engine was stopped.")
        late = threading.Timer(self._start_timeout, _signal, (process, signal.SIGKILL))
        late.daemon = True
        late.start()
        try:
            failure = self._listen(process, late)
        finally:
            late.cancel()
            code = _bury(process)
        if self._ready.done():
            self._ready = Future()
        return failure or _ended(code)

    def _spawn(self) -> subprocess.Popen[str] | None:
        """Start the process; None if it was told to stop in the meantime."""
        with self._lock:
            if self._stopping.is_set():
                return None
            self._process = subprocess.Popen(
                [*self._command, *self._arguments()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                errors="replace",
                env=self._environment(os.environ),
                start_new_session=True,
            )
            return self._process

    def _arguments(self) -> list[str]:
        config = self._config
        options: dict[str, object] = {
            "--host": self._server.host,
            "--port": self._port,
            "--model": config.model,
            "--revision": config.revision,
            "--adapter": config.adapter,
            "--watermark": config.watermark,
            "--device": None if config.devices else config.device,
            "--devices": ",".join(config.devices) or None,
            "--dtype": config.dtype,
            "--slots": config.slots,
            "--queue": config.queue,
            "--max-context": config.max_context,
            "--max-lead": config.max_lead_s,
            "--threads": config.threads,
        }
        given = [f"{name}={value}" for name, value in options.items() if value is not None]
        given += [] if config.cuda_graphs else ["--no-cuda-graphs"]
        given += [] if config.kernels else ["--no-kernels"]
        given += ["--eight-bit-depth"] if config.eight_bit_depth else []
        given += ["--whole-context"] if config.whole_context else []
        return ["--supervised", f"--restarts={self._restarts}", *given]

    def _environment(self, env: Mapping[str, str]) -> dict[str, str]:
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, [env.get("PYTHONPATH")])]
        own = {"CSM_ENGINE_KEY": ",".join(self._server.keys), "PYTHONPATH": os.pathsep.join(paths)}
        if self._server.voices_dir is not None:
            own["CSM_VOICES_DIR"] = str(self._server.voices_dir)
        # Waiting threads of torch would otherwise spin and take the cores from other processes.
        return {"OMP_WAIT_POLICY": "PASSIVE", **env, **own}

    def _listen(self, process: subprocess.Popen[str], late: threading.Timer) -> CsmError | None:
        """Read its reports until it ends; returns the failure that it reported, if any."""
        failure: CsmError | None = None
        assert process.stdout is not None
        for line in process.stdout:
            event = read_event(line)
            if event is None:
                self._on_progress(line.rstrip())
            elif event["event"] == "failed":
                failure = read_failure(event)
            else:
                self._hear(event, late)
        return failure

    def _hear(self, event: dict[str, Any], late: threading.Timer) -> None:
        if event["event"] == "listening":
            self._port = int(event["port"])
        elif event["event"] == "ready":
            late.cancel()
            self._was_ready = True
            self._on_progress(f"engine ready: {event['detail']}, after {event['seconds']:.1f} s")
            with suppress(InvalidStateError):  # it was told to stop
                self._ready.set_result(self.url)
        else:
            self._on_progress(f"engine: {event.get('detail', '')}")

    def _settle(self, error: CsmError) -> None:
        with suppress(InvalidStateError):
            self._ready.set_exception(error)


def _signal(process: subprocess.Popen[str], number: int) -> None:
    """Send a signal to the process group: the engine may have children of its own."""
    if process.poll() is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)


def _bury(process: subprocess.Popen[str]) -> int:
    """Wait for a process whose standard output has ended, and kill it if it does not exit."""
    try:
        code = process.wait(5.0)
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGKILL)
        code = process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    return code


def _ended(code: int) -> UnavailableError:
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return UnavailableError(f"The engine process {how}; its messages say more.")


def _late(timeout: float | None) -> UnavailableError:
    return UnavailableError(f"The engine did not get ready within {timeout:g} s.", retry_after=5.0)
