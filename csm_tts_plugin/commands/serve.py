"""`serve`: runs the engine's server as a process."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from .. import telemetry
from ..config import DEFAULT_PORT, EngineConfig, ServerConfig, split_devices
from ..engine.api import SpeechEngine
from ..errors import ConfigError, CsmError
from ..server.report import JsonReport, LineReport, Report
from ..server.run import Stopping, serve
from ..server.run_router import Start, serve_all, start_engine
from .options import add_engine_options, engine_config, load_engine, positive, whole

_ORPHAN_S = 5.0
"""Time after the parent's end at which the process exits even if it has not stopped."""

EngineFactory = Callable[[EngineConfig], SpeechEngine]
Serving = Callable[..., Awaitable[None]]


def add(parser: argparse.ArgumentParser) -> None:
    add_engine_options(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)"
    )
    parser.add_argument(
        "--port", type=whole, default=DEFAULT_PORT, help="0: any free port (default: %(default)s)"
    )
    parser.add_argument(
        "--devices",
        metavar="A,B",
        help="one engine per device, behind one port: cuda:0,cuda:1, or all (default: CSM_DEVICES)",
    )
    parser.add_argument("--key", help="key for clients; CSM_ENGINE_KEY hides it from `ps`")
    parser.add_argument("--slots", type=positive, help="utterances spoken at the same time")
    parser.add_argument("--queue", type=whole, help="conversations that may wait for a slot")
    parser.add_argument(
        "--max-lead", type=float, metavar="S", help="most seconds generated ahead of playback"
    )
    parser.add_argument(
        "--supervised",
        action="store_true",
        help="report JSON lines on stdout, exit when stdin closes",
    )
    parser.add_argument("--restarts", type=whole, default=0, help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(
    args: argparse.Namespace,
    make_engine: EngineFactory = load_engine,
    start: Start = start_engine,
) -> int:
    """Serves until told to stop and returns 0. A CsmError is reported, and 2 returned."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    report: Report = JsonReport() if args.supervised else LineReport()
    try:
        config, server = _configs(args)
        if config.devices:
            serving = partial(serve_all, config, server, report, start=start)
        else:
            telemetry.begin("csm-engine")
            serving = partial(serve, partial(make_engine, config), server, report)
        asyncio.run(_serve(serving, supervised=args.supervised))
    except CsmError as error:
        report.failed(error)
        return 2
    finally:
        telemetry.end()
    return 0


def _configs(args: argparse.Namespace) -> tuple[EngineConfig, ServerConfig]:
    config, server = engine_config(args), ServerConfig.from_env()
    slots = config.slots if args.slots is None else args.slots
    queue = config.queue if args.queue is None else args.queue
    lead = config.max_lead_s if args.max_lead is None else args.max_lead
    devices = _devices(args, config)
    config = replace(config, slots=slots, queue=queue, max_lead_s=lead, devices=devices)
    key = args.key or server.key
    return config, replace(server, host=args.host, port=args.port, key=key, restarts=args.restarts)


def _devices(args: argparse.Namespace, config: EngineConfig) -> tuple[str, ...]:
    """The devices; the command line has precedence over the environment. Raises ConfigError."""
    if args.devices is None:
        return () if args.device is not None else config.devices
    if args.device is not None:
        raise ConfigError("--device and --devices exclude each other: give one of them.")
    devices = split_devices(args.devices, "--devices")
    if not devices:
        raise ConfigError("--devices names no device: give some, such as cuda:0,cuda:1, or all.")
    return devices


async def _serve(serving: Serving, *, supervised: bool) -> None:
    stopping = Stopping()
    if supervised:
        _follow_parent(asyncio.get_running_loop(), stopping)
    await serving(stopping=stopping)


def _follow_parent(loop: asyncio.AbstractEventLoop, stopping: Stopping) -> None:
    """Ends when the parent ends: by the kernel's signal on Linux, and by closed stdin."""
    _die_with_parent()

    def watch() -> None:
        # Not through sys.stdin: this thread would hold its lock while the interpreter exits.
        while os.read(0, 4096):
            pass
        try:
            loop.call_soon_threadsafe(stopping.at_once)
        except RuntimeError:
            return  # the loop has ended, so the process is ending
        threading.Event().wait(_ORPHAN_S)
        os._exit(1)

    threading.Thread(target=watch, name="csm-parent", daemon=True).start()


def _die_with_parent() -> None:
    """Linux: sends SIGKILL when the thread that started this process ends."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes
    import signal

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal.SIGKILL))
