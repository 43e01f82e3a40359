"""The engine's server: routes and what they share. Loads no model and imports no torch."""

from __future__ import annotations

import asyncio

from aiohttp import web

from ..config import ServerConfig
from ..engine.api import SpeechEngine
from .bridge import Bridge
from .faults import faults
from .health import healthz, metrics, readyz
from .state import STATE, ServerState
from .stream import stream


def create_app(engine: SpeechEngine, config: ServerConfig) -> web.Application:
    """An application that speaks with `engine`, which the caller starts and stops.

    Call it where the event loop runs: that loop is where the engine's sound will arrive.
    """
    app = web.Application(middlewares=[faults], client_max_size=config.limits.message_bytes)
    app[STATE] = ServerState(engine, config, Bridge(asyncio.get_running_loop()))
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/v1/stream", stream)
    app.on_shutdown.append(_end_sessions)
    return app


async def _end_sessions(app: web.Application) -> None:
    app[STATE].end_sessions()
