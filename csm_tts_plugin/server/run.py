"""A process that serves one engine, from the first line to the last: `serve`."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from aiohttp import web

from ..config import ServerConfig
from ..engine.api import SpeechEngine
from ..errors import ConfigError, CsmError
from .access import check_bind
from .app import create_app, create_runner
from .report import Report
from .state import STATE

_POLL_S = 0.1
_BACKLOG = 1024


class Stopping:
    """The two ways to end: `drain` lets what speaks finish, `now` does not."""

    def __init__(self) -> None:
        self.drain = asyncio.Event()
        self.now = asyncio.Event()

    def signalled(self) -> None:
        """The first signal drains, the second ends it."""
        (self.now if self.drain.is_set() else self.drain).set()
        self.drain.set()

    def at_once(self) -> None:
        self.now.set()
        self.drain.set()


async def serve(
    make_engine: Callable[[], SpeechEngine],
    config: ServerConfig,
    report: Report,
    stopping: Stopping | None = None,
) -> None:
    """Listen, load, speak; returns after SIGTERM or SIGINT when what spoke has finished.

    `make_engine` is called once the address is known to be usable: importing torch takes seconds.

    Raises ConfigError (address taken, public without a key) and what kept the engine from getting
    ready, or ended it.
    """
    check_bind(config)
    stopping = stopping or Stopping()
    listener = _listen(config)
    try:
        engine = make_engine()
    except BaseException:
        listener.close()
        raise
    app = create_app(engine, config)
    runner = create_runner(app)
    await runner.setup()
    try:
        await web.SockSite(runner, listener, backlog=_BACKLOG).start()
        report.listening(*listener.getsockname()[:2])
        with _signals(stopping):
            await _live(engine, report, stopping)
            await _drain(app, config, stopping)
    finally:
        engine_stop = asyncio.create_task(asyncio.to_thread(engine.stop))
        await runner.cleanup()
        await engine_stop


async def _live(engine: SpeechEngine, report: Report, stopping: Stopping) -> None:
    """Until told to stop. Raises the engine's failure."""
    began, told, ready = time.monotonic(), "", False
    engine.start()
    while not stopping.drain.is_set():
        status = engine.status()
        if status.failure is not None:
            raise status.failure
        if status.ready and not ready:
            ready = True
            report.ready(engine.info(), status, time.monotonic() - began)
        elif not ready and status.detail != told:
            told = status.detail
            report.progress(told)
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL_S):
                await stopping.drain.wait()


async def _drain(app: web.Application, config: ServerConfig, stopping: Stopping) -> None:
    drain = asyncio.create_task(app[STATE].drain(config.limits.drain_s))
    hurry = asyncio.create_task(stopping.now.wait())
    await asyncio.wait([drain, hurry], return_when=asyncio.FIRST_COMPLETED)
    for task in (drain, hurry):
        task.cancel()
    await asyncio.gather(drain, hurry, return_exceptions=True)


def _listen(config: ServerConfig) -> socket.socket:
    """A bound socket, so that what is wrong with the address is known before a model is loaded."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise _unusable(config, error) from None
    listener.setblocking(False)
    return listener


def _unusable(config: ServerConfig, error: OSError) -> CsmError:
    where = f"{config.host}:{config.port}"
    return ConfigError(
        f"Cannot listen on {where} ({error.strerror or error}); stop what listens there, or choose "
        "another with --host and --port (0 takes a free one)."
    )


class _signals:
    """SIGTERM and SIGINT stop gracefully inside; a second one at once."""

    def __init__(self, stopping: Stopping) -> None:
        self._stopping = stopping

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            # Not in the main thread, or on Windows: whoever runs us there stops us by `stopping`.
            with suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, self._stopping.signalled)

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(NotImplementedError, RuntimeError, ValueError):
                loop.remove_signal_handler(number)
