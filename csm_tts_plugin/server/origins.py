"""Which web pages may use the server: CSM_ALLOWED_ORIGINS, and without a key those of loopback.

A browser sends "simple" requests and opens WebSockets to any address without asking the server
first, also to 127.0.0.1. With DNS rebinding, a page's own host name resolves to 127.0.0.1, so that
the browser takes the server for the page's own. Pages are recognised by the headers `Origin` and
`Host`, which scripts cannot set. Programs send no `Origin` and are accepted.
"""

from __future__ import annotations

import ipaddress
import re

from aiohttp import hdrs, web

from ..config import ServerConfig
from ..errors import ConfigError, ForbiddenError
from .edge import EDGE
from .faults import Handler, json_error

ANY = "*"

_ORIGIN = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?", re.IGNORECASE)
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?", re.IGNORECASE)
_REMEMBER_S = 600
_HEADERS = "authorization, content-type, traceparent"
_METHODS = "GET, POST, DELETE, OPTIONS"
_PORTS = {"http": "80", "https": "443"}


def check_origins(config: ServerConfig) -> None:
    """Raises ConfigError for a malformed origin, and for `*` without a key."""
    for origin in config.allowed_origins:
        if origin != ANY and not _ORIGIN.fullmatch(origin):
            raise ConfigError(
                "CSM_ALLOWED_ORIGINS holds something that is no origin; write each as "
                "https://page.example or http://localhost:3000, with commas between them."
            )
    if ANY in config.allowed_origins and not config.keys:
        raise ConfigError(
            "CSM_ALLOWED_ORIGINS=* lets every web page speak in anybody's name: set CSM_ENGINE_KEY,"
            " or name the pages."
        )


def is_loopback(host: str) -> bool:
    """Whether a host name or address, with or without brackets, is this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@web.middleware
async def origins(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuses forbidden pages with 403 before any handler runs, and answers preflight requests."""
    config = request.app[EDGE].config
    try:
        _check(request, config)
    except ForbiddenError as error:
        request.app[EDGE].errors.labels(error.code).inc()
        return json_error(error)
    if request.method == hdrs.METH_OPTIONS and _may_read(request, config):
        return _preflight(request)
    return await handler(request)


async def share(request: web.Request, response: web.StreamResponse) -> None:
    """Adds CORS headers to each response, so that an allowed page can read it."""
    config = request.app[EDGE].config
    if config.allowed_origins or not config.keys:
        response.headers.add(hdrs.VARY, hdrs.ORIGIN)
    if _may_read(request, config):
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = request.headers[hdrs.ORIGIN]
        response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = "Retry-After"


def _check(request: web.Request, config: ServerConfig) -> None:
    """Raises ForbiddenError. With a key nothing is checked here, because no
    page can guess a key.
    """
    if config.keys:
        return
    for host in request.headers.getall(hdrs.HOST, ()):
        if not _is_ours(host, config):
            raise ForbiddenError(
                "This engine has no key and answers on this machine's own address only: call it as"
                " 127.0.0.1 or localhost, or start it with CSM_ENGINE_KEY."
            )
    if not all(_is_allowed(origin, config) for origin in request.headers.getall(hdrs.ORIGIN, ())):
        raise ForbiddenError(
            "Web pages of other origins may not speak to this engine: name the page's origin in"
            " CSM_ALLOWED_ORIGINS."
        )


def _is_ours(host: str, config: ServerConfig) -> bool:
    """Whether a Host header names this server: loopback, its own address, or the host of an allowed
    page, which may share its host with the server.
    """
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    name = found[1].lower()
    allowed = {
        match[2].lower() for match in map(_ORIGIN.fullmatch, config.allowed_origins) if match
    }
    return is_loopback(name) or name.strip("[]") == config.host.lower() or name in allowed


def _is_allowed(origin: str, config: ServerConfig) -> bool:
    found = _ORIGIN.fullmatch(origin)
    if found is None:  # also `null`: a file, or a frame with a hidden origin
        return False
    own = found[2].strip("[]").lower() == config.host.lower()
    return own or is_loopback(found[2]) or _is_named(origin, config)


def _is_named(origin: str, config: ServerConfig) -> bool:
    return any(one == ANY or _same(one, origin) for one in config.allowed_origins)


def _same(one: str, other: str) -> bool:
    return _plain(one) == _plain(other)


def _plain(origin: str) -> tuple[str, str, str] | str:
    found = _ORIGIN.fullmatch(origin)
    if found is None:
        return origin
    scheme = found[1].lower()
    return scheme, found[2].lower(), found[3] or _PORTS[scheme]


def _may_read(request: web.Request, config: ServerConfig) -> bool:
    """Whether the page that sent a request may read the response."""
    given = request.headers.getall(hdrs.ORIGIN, ())
    if len(given) != 1:
        return False
    return _is_named(given[0], config) if config.keys else _is_allowed(given[0], config)


def _preflight(request: web.Request) -> web.Response:
    """The answer to a browser's preflight request."""
    headers: dict[str, str] = {
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: _METHODS,
        hdrs.ACCESS_CONTROL_ALLOW_HEADERS: request.headers.get(
            hdrs.ACCESS_CONTROL_REQUEST_HEADERS, _HEADERS
        ),
        hdrs.ACCESS_CONTROL_MAX_AGE: str(_REMEMBER_S),
    }
    if request.headers.get("Access-Control-Request-Private-Network") == "true":
        headers["Access-Control-Allow-Private-Network"] = "true"
    return web.Response(status=204, headers=headers)
