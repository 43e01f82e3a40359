"""A router in this process in front of servers with stand-in engines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from csm_tts_plugin.config import Limits, ServerConfig
from csm_tts_plugin.errors import UnavailableError
from csm_tts_plugin.server.app import create_runner
from csm_tts_plugin.server.fleet import Fleet, Member
from csm_tts_plugin.server.router import create_router


@dataclass
class Told:
    """An engine's address, in place of its supervisor; empty `address`: still starting."""

    address: str
    key: str = "of the engines alone"
    restarts: int = 0

    @property
    def url(self) -> str:
        if not self.address:
            raise UnavailableError("The engine is still starting.", retry_after=1.0)
        return self.address


@dataclass
class Router:
    url: str
    fleet: Fleet
    app: web.Application
    limits: Limits = field(default_factory=Limits)


@asynccontextmanager
async def routing(urls: Sequence[str], **settings) -> AsyncIterator[Router]:
    """`settings`: of `ServerConfig`."""
    config = ServerConfig(port=0, **settings)
    engine_key = {"key": config.keys[0]} if config.keys else {}
    members = [Member(str(n), "cpu", Told(url, **engine_key)) for n, url in enumerate(urls)]
    fleet = Fleet(members, config.limits, keys=bool(config.keys))
    app = create_router(fleet, config)
    runner = create_runner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        for member in members:
            await fleet.look(member)
        host, port = runner.addresses[0][:2]
        yield Router(f"http://{host}:{port}", fleet, app, config.limits)
    finally:
        await runner.cleanup()
