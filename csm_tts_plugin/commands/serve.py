"""`serve`: the engine's server as a process."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from .. import telemetry
from ..config import DEFAULT_PORT, EngineConfig, ServerConfig
from ..engine.api import SpeechEngine
from ..errors import CsmError
from ..server.report import JsonReport, LineReport, Report
from ..server.run import Stopping, serve
from .options import add_engine_options, engine_config, load_engine, positive, whole

_ORPHAN_S = 5.0
"""After its parent's end, a process that has not ended by then ends anyway."""

EngineFactory = Callable[[EngineConfig], SpeechEngine]


def add(parser: argparse.ArgumentParser) -> None:
    add_engine_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address (default: 127.0.0.1)")
    parser.add_argument(
        "--port", type=whole, default=DEFAULT_PORT, help="0: any (default: %(default)s)"
    )
    parser.add_argument("--key", help="clients must know it; CSM_ENGINE_KEY keeps it out of `ps`")
    parser.add_argument("--slots", type=positive, help="utterances spoken at the same time")
    parser.add_argument("--queue", type=whole, help="utterances that may wait for a slot")
    parser.add_argument("--max-lead", type=float, metavar="S", help="seconds made ahead of playing")
    parser.add_argument(
        "--supervised", action="store_true", help="JSON lines on stdout; ends when stdin does"
    )
    parser.add_argument("--restarts", type=whole, default=0, help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, make_engine: EngineFactory = load_engine) -> int:
    """Serve until told to stop; 0. Raises nothing: a CsmError is reported, and 2 returned."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    report: Report = JsonReport() if args.supervised else LineReport()
    try:
        config, server = _configs(args)
        telemetry.begin("csm-engine")
        make = partial(make_engine, config)
        asyncio.run(_serve(make, server, report, supervised=args.supervised))
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
    config = replace(config, slots=slots, queue=queue, max_lead_s=lead)
    key = args.key or server.key
    return config, replace(server, host=args.host, port=args.port, key=key, restarts=args.restarts)


async def _serve(
    make_engine: Callable[[], SpeechEngine],
    server: ServerConfig,
    report: Report,
    *,
    supervised: bool,
) -> None:
    stopping = Stopping()
    if supervised:
        _follow_parent(asyncio.get_running_loop(), stopping)
    await serve(make_engine, server, report, stopping)


def _follow_parent(loop: asyncio.AbstractEventLoop, stopping: Stopping) -> None:
    """End when the parent does: by the kernel's signal where there is one, and by stdin's end."""
    _die_with_parent()

    def watch() -> None:
        # Not through sys.stdin: its lock, held by this thread, would break the interpreter's end.
        while os.read(0, 4096):
            pass
        try:
            loop.call_soon_threadsafe(stopping.at_once)
        except RuntimeError:
            return  # the loop has ended: so will the process
        threading.Event().wait(_ORPHAN_S)
        os._exit(1)

    threading.Thread(target=watch, name="csm-parent", daemon=True).start()


def _die_with_parent() -> None:
    """Linux: SIGKILL when the thread that started us ends."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes
    import signal

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal.SIGKILL))
