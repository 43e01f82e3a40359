"""`/healthz`, `/readyz` and `/metrics`, for load balancers, operators and workers."""

from __future__ import annotations

from aiohttp import web

from ..version import __version__
from .access import require_key
from .state import STATE


async def healthz(request: web.Request) -> web.Response:
    """200 as long as the event loop runs."""
    return web.json_response({"status": "ok", "version": __version__})


async def readyz(request: web.Request) -> web.Response:
    """200 when the engine is ready, else 503, with the same fields in both cases."""
    state = request.app[STATE]
    status, info = state.engine.status(), state.engine.info()
    ready = status.ready and not state.draining
    body = {
        "ready": ready,
        "detail": "shutting down" if state.draining else status.detail,
        "slots": status.slots,
        "speaking": status.speaking,
        "queued": status.queued,
        "queue": status.queue,
        "conversations": status.conversations,
        "model": info.model if info else None,
        "device": info.device if info else None,
        "dtype": info.dtype if info else None,
        "path": info.path if info else None,
        "adapter": info.adapter if info else None,
        "watermark": info.watermark if info else None,
        "clones": info.clones if info else None,
        "follows": info.follows if info else None,
    }
    return web.json_response(body, status=200 if ready else 503)


async def metrics(request: web.Request) -> web.Response:
    """Metrics in Prometheus' text format; needs the key if the server has one."""
    state = request.app[STATE]
    require_key(request, state.config)
    body = state.metrics.render(
        state.engine.status(),
        state.engine.info(),
        clients=len(state.sessions),
        draining=state.draining,
    )
    return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4"})
