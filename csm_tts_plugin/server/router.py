"""The server in front of several engines. It has an engine's routes and forwards to the least full.

The router checks web pages (`Origin`, `Host`) and keys as an engine does. The engines listen on
loopback, with ports and keys that no page knows. They check the content of requests.
"""

from __future__ import annotations

import asyncio

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, generate_latest

from ..config import ServerConfig
from ..errors import CODES
from .access import require_key
from .discovery import slashes
from .edge import EDGE, Edge
from .faults import faults
from .figures import merged
from .fleet import FLEET, Fleet
from .forward import SPEECH, forward, to_all
from .health import healthz
from .origins import origins, share
from .tunnel import native_socket, seed_socket

_FORWARDED = (
    ("POST", SPEECH),
    ("POST", "/v1/audio/detect"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{id:.+}"),
    ("GET", "/v1/audio/voices"),
    ("GET", "/openapi.json"),
    ("GET", "/v1/voices"),
    ("POST", "/v1/voices"),
)
_REGISTRY = web.AppKey("registry", CollectorRegistry)
_ITSELF = "router"
"""The router's label `engine` in `/metrics`."""


def create_router(fleet: Fleet, config: ServerConfig) -> web.Application:
    """The router's application for `fleet`, which the caller starts and stops."""
    app = web.Application(
        middlewares=[origins, faults, slashes], client_max_size=config.limits.message_bytes
    )
    registry = app[_REGISTRY] = CollectorRegistry()
    ProcessCollector(registry=registry)
    errors = Counter("csm_errors", "Errors told to clients, by code", ["code"], registry=registry)
    for code in CODES:
        errors.labels(code)
    app[FLEET], app[EDGE] = fleet, Edge(config, errors)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/v1/stream", native_socket, allow_head=False)
    app.router.add_get("/ws", seed_socket, allow_head=False)
    app.router.add_delete("/v1/voices/{id}", to_all)
    for method, path in _FORWARDED:
        add = app.router.add_get if method == "GET" else app.router.add_post
        add(path, forward)
    app.on_response_prepare.append(share)
    app.on_startup.append(_open)
    app.on_cleanup.append(_close)
    return app


async def readyz(request: web.Request) -> web.Response:
    """200 if an engine can speak, else 503; with the sums and each engine's status."""
    await request.app[FLEET].look_at_all()
    told = request.app[FLEET].told()
    return web.json_response(told, status=200 if told["ready"] else 503)


async def metrics(request: web.Request) -> web.Response:
    """The metrics of all engines and of the router, with the label `engine`."""
    require_key(request, request.app[EDGE].config)
    fleet, registry = request.app[FLEET], request.app[_REGISTRY]
    texts = await asyncio.gather(*(fleet.metrics(member) for member in fleet.members))
    found = zip(fleet.members, texts, strict=True)
    all_texts = {member.name: text for member, text in found if text is not None}
    all_texts[_ITSELF] = generate_latest(registry).decode() + _up(fleet, set(all_texts))
    body = await asyncio.to_thread(merged, all_texts)
    return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4"})


def _up(fleet: Fleet, answering: set[str]) -> str:
    """`csm_engine_up`: the only metric of an engine that does not answer."""
    registry = CollectorRegistry()
    up = Gauge("csm_engine_up", "1 where it answers", ["engine", "device"], registry=registry)
    for member in fleet.members:
        up.labels(member.name, member.device).set(member.name in answering)
    return generate_latest(registry).decode()


async def _open(app: web.Application) -> None:
    await app[FLEET].open()


async def _close(app: web.Application) -> None:
    await app[FLEET].aclose()
