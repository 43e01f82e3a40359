"""Routes that clients of OpenAI-compatible servers ask first: models and voices.

`GET /v1/models`, `GET /v1/models/{id}`, `GET /v1/audio/voices`. Also handles paths with a doubled
slash, which result from a base address that ends in a slash.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from aiohttp import web

from ..config import ServerConfig
from ..errors import RequestError, UnavailableError
from ..voices.store import VoiceStore
from ..wire.protocol import STOCK_VOICE
from .access import bearer, require_key, which_key
from .faults import Handler, json_error
from .openapi import description
from .state import STATE

_SLASHES = re.compile("//+")


@web.middleware
async def slashes(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Treats several slashes as one, without a redirect, which WebSocket clients do not follow."""
    path = request.rel_url.raw_path
    if "//" not in path:
        return await handler(request)
    single = request.rel_url.with_path(_SLASHES.sub("/", path), encoded=True)
    found = await request.app.router.resolve(request.clone(rel_url=single))
    request.match_info.update(found)
    return await found.handler(request)


async def list_models(request: web.Request) -> web.Response:
    """`{"object": "list", "data": [...]}` with the engine's one model."""
    return web.json_response({"object": "list", "data": [_model(request)]})


async def show_model(request: web.Request) -> web.Response:
    """The model with this id, otherwise 404."""
    model = _model(request)
    if request.match_info["id"] != model["id"]:
        missing = RequestError("There is no such model; GET /v1/models names the engine's model.")
        return json_error(missing, 404)
    return web.json_response(model)


async def list_names(request: web.Request) -> web.Response:
    """`{"voices": [{"id", "name"}, ...]}`: all usable voices, the stock voice first."""
    config = request.app[STATE].config
    require_key(request, config)
    names = await _names(config)
    return web.json_response({"voices": [{"id": name, "name": name} for name in names]})


async def openapi(request: web.Request) -> web.Response:
    """The OpenAPI document; the names of stored voices are in it only for requests with a key."""
    config = request.app[STATE].config
    known = which_key(bearer(request), config.keys) is not None
    return web.json_response(description(config, await _names(config) if known else [STOCK_VOICE]))


async def _names(config: ServerConfig) -> list[str]:
    if config.voices_dir is None:
        return [STOCK_VOICE]
    stored = await asyncio.to_thread(VoiceStore(config.voices_dir, limits=config.limits).list)
    return [STOCK_VOICE, *(voice.id for voice in stored if voice.problem is None)]


def _model(request: web.Request) -> dict[str, Any]:
    """The model as an entry of OpenAI's list. Raises AuthError, and
    UnavailableError while it loads.
    """
    state = request.app[STATE]
    require_key(request, state.config)
    info = state.engine.info()
    if info is None:
        raise UnavailableError("The model is still loading; try again.", retry_after=1.0)
    return {"id": info.model, "object": "model", "created": 0, "owned_by": "csm_tts_plugin"}
