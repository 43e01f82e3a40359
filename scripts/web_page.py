"""The web page and its token endpoint: an aiohttp application, alone or mounted in another.

    python -m scripts.web_page [--host H] [--port P]

Serves the built page of `web/` and `POST /token`, which admits one browser to one new room. The
API secret never leaves the server. Knows nothing of agents except the name for their dispatch.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import os
import secrets
import sys
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Middleware

from csm_tts_plugin.config import AgentConfig, load_env_file
from csm_tts_plugin.errors import ConfigError, CsmError
from csm_tts_plugin.worker import check_keys
from livekit import api

from .setup_tools import ROOT

DIST = ROOT / "web" / "dist"
DEFAULT_PORT = 8080
TOKEN_TTL = timedelta(minutes=2)
"""Time to join. LiveKit renews the token of a participant who has joined."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class PageConfig:
    """The LiveKit server, and the limits on who may call."""

    livekit_url: str
    livekit_key: str
    livekit_secret: str = field(repr=False)
    agent_name: str = ""
    """The agent dispatched to each room. If empty, LiveKit dispatches a worker without a name."""
    public_url: str = ""
    """LiveKit's address for browsers, if it differs from `livekit_url`."""
    hosts: frozenset[str] | None = None
    """Accepted names in the Host header; None accepts any, for use behind a proxy."""
    tokens_per_minute: int = 12
    """For each client address. A token allows a call, and a call takes a slot of an engine."""
    dist: Path = DIST

    @property
    def browser_url(self) -> str:
        return self.public_url or self.livekit_url

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> PageConfig:
        """Raises ConfigError if a variable is missing."""
        agent = AgentConfig.from_env(env)
        url, key, secret = check_keys(agent)
        public = env.get("WEB_LIVEKIT_URL", "")
        return cls(url, key, secret, agent_name=agent.agent_name, public_url=public)


class Rate:
    """A token bucket of `per_minute` for each address; drops the least recent of many addresses."""

    def __init__(self, per_minute: int, addresses: int = 1024) -> None:
        self._size = float(per_minute)
        self._most = addresses
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, address: str, now: float) -> float:
        """0 if a token was taken from the bucket, otherwise the seconds until there is one."""
        left, since = self._buckets.pop(address, (self._size, now))
        left = min(self._size, left + (now - since) * self._size / 60)
        allowed = left >= 1
        self._buckets[address] = (left - 1 if allowed else left, now)
        while len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - left) * 60 / self._size


def room_token(config: PageConfig) -> str:
    """A token for a new room with a random name: microphone, subscription, own attributes."""
    grants = api.VideoGrants(
        room_join=True,
        room=f"web-{secrets.token_urlsafe(18)}",
        can_publish_sources=["microphone"],
        can_publish_data=False,
        can_update_own_metadata=True,
    )
    token = (
        api.AccessToken(config.livekit_key, config.livekit_secret)
        .with_identity(f"caller-{secrets.token_hex(8)}")
        .with_ttl(TOKEN_TTL)
        .with_grants(grants)
    )
    if config.agent_name:
        agent = api.RoomAgentDispatch(agent_name=config.agent_name)
        token = token.with_room_config(api.RoomConfiguration(agents=[agent]))
    return token.to_jwt()


def application(config: PageConfig) -> web.Application:
    """Can be run or mounted with `add_subapp`. Raises ConfigError if the page was not built."""
    if not (config.dist / "index.html").is_file():
        raise ConfigError(f"{config.dist} has no page; run `npm ci && npm run build` in web/.")
    rate = Rate(config.tokens_per_minute)

    async def index(_: web.Request) -> web.StreamResponse:
        return web.FileResponse(config.dist / "index.html")

    async def token(request: web.Request) -> web.StreamResponse:
        wait = rate.wait_s(request.remote or "", time.monotonic())
        if wait:
            after = {"Retry-After": str(int(wait) + 1)}
            return web.json_response({"error": "too many calls"}, status=429, headers=after)
        return web.json_response({"url": config.browser_url, "token": room_token(config)})

    app = web.Application(middlewares=[_guard(config)], client_max_size=1024)
    app.on_response_prepare.append(_headers(config))
    app.router.add_get("/", index)
    app.router.add_post("/token", token)
    app.router.add_static("/assets/", config.dist / "assets")
    return app


def _guard(config: PageConfig) -> Middleware:
    """Refuses other names in `Host` and requests from other pages."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
        if config.hosts is not None and _name(f"//{host}") not in config.hosts:
            raise web.HTTPForbidden(text="This name is not served here.")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            raise web.HTTPForbidden(text="Requests are accepted from this server's page only.")
        return await handler(request)

    return guard


def _headers(
    config: PageConfig,
) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """Adds headers to every response, also to errors. Only files named by their hash are cached."""
    security = security_headers(config.browser_url)

    async def add(request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(security)
        named = "/assets/index-" in request.path and response.status in (200, 206, 304)
        kept = "public, max-age=31536000, immutable" if named else "no-store"
        response.headers["Cache-Control"] = kept

    return add


def security_headers(livekit_url: str) -> dict[str, str]:
    """The page may load only its own files, connect only to LiveKit, and not be framed."""
    sockets = " ".join(_origins(livekit_url))
    policy = [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        f"connect-src 'self' {sockets}",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return {
        "Content-Security-Policy": "; ".join(policy),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }


def _origins(url: str) -> list[str]:
    """WebSocket and HTTP origins: LiveKit's client asks over HTTP why a socket failed.

    LiveKit Cloud redirects clients to a nearer server of the same domain.
    """
    place = urlsplit(url).netloc
    secure = urlsplit(url).scheme in ("wss", "https")
    places = [place, "*.livekit.cloud"] if place.endswith(".livekit.cloud") else [place]
    schemes = ("wss", "https") if secure else ("ws", "http")
    return [f"{scheme}://{place}" for place in places for scheme in schemes]


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def local_names(host: str) -> frozenset[str] | None:
    """On loopback only local names are accepted: another name here means DNS rebinding."""
    names = frozenset({"localhost", "127.0.0.1", "::1", host})
    try:
        return names if host == "localhost" or ipaddress.ip_address(host).is_loopback else None
    except ValueError:
        return None


class Page:
    """`async with Page(config, host, port) as page:` serves at `page.url`."""

    def __init__(self, config: PageConfig, host: str, port: int) -> None:
        self._runner = web.AppRunner(application(config), access_log=None)
        self._host, self._port = host, port

    @property
    def url(self) -> str:
        port = self._runner.addresses[0][1]
        return f"http://{'localhost' if self._host == '127.0.0.1' else self._host}:{port}"

    async def __aenter__(self) -> Page:
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError(
                f"Cannot listen on {self._host}:{self._port} ({error.strerror}); "
                "choose another port: PORT=8085 make web, or --port 8085."
            ) from None
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()


async def _serve(config: PageConfig, host: str, port: int) -> None:
    async with Page(config, host, port) as page:
        print(f"The page is at {page.url}; Ctrl-C stops it.", flush=True)
        await asyncio.Event().wait()


def main() -> int:
    parser = argparse.ArgumentParser(
        description="The web page and its token endpoint, without a LiveKit server."
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    parser.add_argument(
        "--any-host", action="store_true", help="accept any Host header; for use behind a proxy"
    )
    args = parser.parse_args()
    try:
        load_env_file(ROOT / ".env")
        hosts = None if args.any_host else local_names(args.host)
        config = replace(PageConfig.from_env(), hosts=hosts)
        asyncio.run(_serve(config, args.host, args.port))
    except CsmError as error:
        print(f"web: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
