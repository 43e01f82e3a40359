"""The server's aiohttp application: routes and their shared state. Does not import torch."""

from __future__ import annotations

import asyncio
import logging

from aiohttp import web

from ..config import ServerConfig
from ..engine.api import SpeechEngine
from .bridge import Bridge
from .detect import detect
from .discovery import list_models, list_names, openapi, show_model, slashes
from .edge import EDGE, Edge
from .faults import faults
from .health import healthz, metrics, readyz
from .openai_speech import speak
from .origins import origins, share
from .seed_socket import seed_socket
from .state import STATE, ServerState
from .stream import stream
from .voice_routes import add_voice, delete_voice, list_voices

_SHUTDOWN_S = 3.0
"""Time for handlers to end after their sessions were ended."""


def create_app(engine: SpeechEngine, config: ServerConfig) -> web.Application:
    """An application that serves `engine`, which the caller starts and stops.

    Must be called with the event loop running that will receive the engine's audio.
    """
    app = web.Application(
        middlewares=[origins, faults, slashes], client_max_size=config.limits.message_bytes
    )
    app[STATE] = state = ServerState(engine, config, Bridge(asyncio.get_running_loop()))
    app[EDGE] = Edge(config, state.metrics.errors)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/v1/stream", stream, allow_head=False)
    app.router.add_get("/ws", seed_socket, allow_head=False)
    app.router.add_post("/v1/audio/speech", speak)
    app.router.add_post("/v1/audio/detect", detect)
    app.router.add_get("/v1/models", list_models)
    app.router.add_get("/v1/models/{id:.+}", show_model)
    app.router.add_get("/v1/audio/voices", list_names)
    app.router.add_get("/openapi.json", openapi)
    app.router.add_get("/v1/voices", list_voices)
    app.router.add_post("/v1/voices", add_voice)
    app.router.add_delete("/v1/voices/{id}", delete_voice)
    app.on_response_prepare.append(share)
    app.on_shutdown.append(_end_sessions)
    return app


def create_runner(app: web.Application) -> web.AppRunner:
    """A runner that does not log requests, whose paths name voices, nor decompress bodies."""
    return web.AppRunner(
        app,
        access_log=None,
        logger=_http_logger(),
        shutdown_timeout=_SHUTDOWN_S,
        auto_decompress=False,
    )


def _http_logger() -> logging.Logger:
    """A silent logger for malformed requests: aiohttp would log their bytes,
    which may hold a key.
    """
    logger = logging.getLogger("csm_tts_plugin.server.http")
    if not logger.filters:
        logger.addFilter(_unquoted)
    return logger


def _unquoted(record: logging.LogRecord) -> bool:
    kind = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else "an error"
    record.msg, record.args, record.exc_info = f"{kind} in a request, before any route", (), None
    return True


async def _end_sessions(app: web.Application) -> None:
    app[STATE].end_sessions()
