"""The engine's server: routes and what they share. Loads no model and imports no torch."""

from __future__ import annotations

import asyncio

from aiohttp import web

from ..config import ServerConfig
from ..engine.api import SpeechEngine
from .bridge import Bridge
from .faults import faults
from .health import healthz, metrics, readyz
from .openai_speech import speak
from .seed_socket import seed_socket
from .state import STATE, ServerState
from .stream import stream
from .voice_routes import add_voice, delete_voice, list_voices

_SHUTDOWN_S = 3.0
"""For handlers to end once their sessions were told to."""


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
    app.router.add_get("/ws", seed_socket)
    app.router.add_post("/v1/audio/speech", speak)
    app.router.add_get("/v1/voices", list_voices)
    app.router.add_post("/v1/voices", add_voice)
    app.router.add_delete("/v1/voices/{id}", delete_voice)
    app.on_shutdown.append(_end_sessions)
    return app


def create_runner(app: web.Application) -> web.AppRunner:
    """Requests are not logged, for their paths name voices, and bodies are not inflated."""
    return web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_S, auto_decompress=False)


async def _end_sessions(app: web.Application) -> None:
    app[STATE].end_sessions()
