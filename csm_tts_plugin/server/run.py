"""The `serve` command: runs one engine and its server until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from aiohttp import web

from ..config import ServerConfig
from ..engine.api import SpeechEngine
from ..errors import ConfigError, CsmError
from .access import check_bind
from .app import create_app, create_runner
from .report import Report, describe
from .state import STATE

_POLL_S = 0.1
BACKLOG = 1024


class Stopping:
    """The two ways to stop: `drain` lets utterances finish, `now` does not."""

    def __init__(self) -> None:
        self.drain = asyncio.Event()
        self.now = asyncio.Event()

    def signalled(self) -> None:
        """The first signal sets `drain`, the second `now`."""
        (self.now if self.drain.is_set() else self.drain).set()
        self.drain.set()

    def at_once(self) -> None:
        self.now.set()
        self.drain.set()

    async def unless_now(self, draining: Coroutine[Any, Any, None]) -> None:
        """Wait for `draining`, or until `now` is set."""
        drain = asyncio.create_task(draining)
        hurry = asyncio.create_task(self.now.wait())
        await asyncio.wait([drain, hurry], return_when=asyncio.FIRST_COMPLETED)
        for task in (drain, hurry):
            task.cancel()
        await asyncio.gather(drain, hurry, return_exceptions=True)


async def serve(
    make_engine: Callable[[], SpeechEngine],
    config: ServerConfig,
    report: Report,
    stopping: Stopping | None = None,
) -> None:
    """Listen, load the model and serve; returns after SIGTERM or SIGINT when utterances have ended.

    `make_engine` is called after the address is bound, because importing torch takes seconds.

    Raises ConfigError (address in use, public without a key) and the error of an engine that did
    not get ready or failed later.
    """
    check_bind(config)
    stopping = stopping or Stopping()
    listener = listen(config)
    try:
        engine = make_engine()
    except BaseException:
        listener.close()
        raise
    app = create_app(engine, config)
    runner = create_runner(app)
    await runner.setup()
    try:
        await web.SockSite(runner, listener, backlog=BACKLOG).start()
        report.listening(*listener.getsockname()[:2])
        with signals(stopping):
            await _live(engine, report, stopping)
            await stopping.unless_now(app[STATE].drain(config.limits.drain_s))
    finally:
        engine_stop = asyncio.create_task(asyncio.to_thread(engine.stop))
        await runner.cleanup()
        await engine_stop


async def _live(engine: SpeechEngine, report: Report, stopping: Stopping) -> None:
    """Returns when told to stop. Raises the engine's failure."""
    began, told, ready = time.monotonic(), "", False
    engine.start()
    while not stopping.drain.is_set():
        status = engine.status()
        if status.failure is not None:
            raise status.failure
        if status.ready and not ready:
            ready = True
            report.ready(describe(engine.info(), status), time.monotonic() - began)
        elif not ready and status.detail != told:
            told = status.detail
            report.progress(told)
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL_S):
                await stopping.drain.wait()


def listen(config: ServerConfig) -> socket.socket:
    """A bound socket, so that a wrong address is reported before a model is loaded."""
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


class signals:
    """Inside the context SIGTERM and SIGINT call `Stopping.signalled`."""

    def __init__(self, stopping: Stopping) -> None:
        self._stopping = stopping
        self._handled: list[int] = []

    def __enter__(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            # asyncio has no signal handlers on Windows (NotImplementedError), and none outside the
            # main thread (RuntimeError, ValueError): the caller then stops it by `stopping`.
            with suppress(NotImplementedError, RuntimeError, ValueError):
                asyncio.get_running_loop().add_signal_handler(number, self._stopping.signalled)
                self._handled.append(number)

    def __exit__(self, *_: object) -> None:
        for number in self._handled:
            asyncio.get_running_loop().remove_signal_handler(number)
