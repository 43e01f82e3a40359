"""`WS /v1/stream`: the native protocol, one conversation per socket."""

from __future__ import annotations

from aiohttp import web

from .access import bearer, require_key
from .session import Session
from .state import STATE


async def stream(request: web.Request) -> web.StreamResponse:
    """A wrong key is refused before the upgrade. The key may also be sent with `open`."""
    state = request.app[STATE]
    state.check_open()
    shown = bearer(request) is not None or not state.config.keys
    key = require_key(request, state.config) if shown else None
    limits = state.config.limits
    socket = web.WebSocketResponse(
        compress=False,  # speech does not compress, and no compression means no bombs
        heartbeat=limits.heartbeat_s,
        max_msg_size=limits.message_bytes,
        timeout=1.0,
    )
    await socket.prepare(request)
    transport = request.transport
    try:
        await Session(state, socket, key).run()
    finally:
        if transport is not None:
            transport.abort()
    return socket
