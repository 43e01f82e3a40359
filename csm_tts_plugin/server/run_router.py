"""`serve --devices`: starts, runs and stops several engines behind a router."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

from aiohttp import web

from ..config import EngineConfig, ServerConfig
from ..errors import ConfigError
from .access import check_bind
from .app import create_runner
from .fleet import Fleet, Member
from .report import Report
from .router import create_router
from .run import BACKLOG, Stopping, listen, signals
from .supervisor import EngineProcess

_DRAIN_MORE_S = 5.0
"""Time for an engine to end after its last utterance."""
_DESCRIPTORS = 65_536
_COUNT = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"

Start = Callable[[EngineConfig, ServerConfig, Callable[[str], None]], EngineProcess]


def start_engine(
    config: EngineConfig, server: ServerConfig, on_progress: Callable[[str], None]
) -> EngineProcess:
    return EngineProcess(config, server, on_progress=on_progress)


async def serve_all(
    config: EngineConfig,
    server: ServerConfig,
    report: Report,
    stopping: Stopping | None = None,
    start: Start = start_engine,
) -> None:
    """Listen, start an engine on each of `config.devices` and route requests; returns after
    SIGTERM or SIGINT when the current utterances have ended.

    A failure in an engine's first start ends all engines; after later failures it is restarted.
    Raises ConfigError and the error of an engine that did not get ready.
    """
    check_bind(server)
    stopping = stopping or Stopping()
    listener = listen(server)
    try:
        devices = await asyncio.to_thread(cards) if config.devices == ("all",) else config.devices
    except BaseException:
        listener.close()
        raise
    _take_descriptors()
    processes = [
        start(replace(config, device=device, devices=()), _own(server), _telling(report, n, device))
        for n, device in enumerate(devices)
    ]
    members = [Member(str(n), devices[n], process) for n, process in enumerate(processes)]
    fleet = Fleet(members, server.limits, keys=bool(server.keys))
    runner = create_runner(create_router(fleet, server))
    await runner.setup()
    try:
        await web.SockSite(runner, listener, backlog=BACKLOG).start()
        report.listening(*listener.getsockname()[:2])
        with signals(stopping):
            await _live(fleet, processes, report, stopping)
            fleet.draining = True
            await stopping.unless_now(_stop(processes, server.limits.drain_s + _DRAIN_MORE_S))
    finally:
        await _stop(processes, 0.0)
        await runner.cleanup()


def cards() -> tuple[str, ...]:
    """Every CUDA device of this machine. A child process lists them, without torch in this one.

    Raises ConfigError if there is none.
    """
    answer = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True)
    count = answer.stdout.strip()
    if answer.returncode or not count.isdecimal() or not int(count):
        raise ConfigError(
            "All devices were asked for, but torch sees no CUDA device here: name them, such as"
            " cpu,cpu, or use --device auto."
        )
    return tuple(f"cuda:{n}" for n in range(int(count)))


def _own(server: ServerConfig) -> ServerConfig:
    """Settings of an engine: a free port on loopback, and the same keys; without keys its
    supervisor makes one."""
    return ServerConfig(port=0, key=server.key, voices_dir=server.voices_dir)


def _telling(report: Report, number: int, device: str) -> Callable[[str], None]:
    return lambda line: report.progress(f"engine {number} ({device}): {line}")


async def _live(
    fleet: Fleet, processes: Sequence[EngineProcess], report: Report, stopping: Stopping
) -> None:
    """Returns when told to stop. Raises the error of an engine's first start."""
    began = time.monotonic()
    for process in processes:
        process.start()
    waiting = asyncio.create_task(_ready(processes), name="csm-router-ready")
    stopped = asyncio.create_task(_told(stopping.drain), name="csm-router-told")
    try:
        await asyncio.wait([waiting, stopped], return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            waiting.result()
            await fleet.look_at_all()
            report.ready(_described(fleet), time.monotonic() - began)
            await stopped
    finally:
        waiting.cancel()
        stopped.cancel()
        await asyncio.gather(waiting, stopped, return_exceptions=True)


async def _ready(processes: Sequence[EngineProcess]) -> None:
    await asyncio.gather(*(process.ready() for process in processes))


async def _told(event: asyncio.Event) -> None:
    await event.wait()


def _described(fleet: Fleet) -> str:
    told = fleet.told()
    return f"{len(fleet.members)} engines on {told['device']}, {told['slots']} slots"


async def _stop(processes: Sequence[EngineProcess], grace: float) -> None:
    """Runs in separate threads: an immediate stop must not wait for a graceful one."""
    loop, pool = asyncio.get_running_loop(), ThreadPoolExecutor(len(processes))
    try:
        await asyncio.gather(*(loop.run_in_executor(pool, one.stop, grace) for one in processes))
    finally:
        pool.shutdown(wait=False)


def _take_descriptors() -> None:
    """Raises the limit of open files to its maximum: each conversation needs two sockets."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _DESCRIPTORS if most == resource.RLIM_INFINITY else min(most, _DESCRIPTORS)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), most))
