"""A server with a stand-in engine on a real socket, and clients; no task or descriptor may leak."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import numpy as np
import pytest
from aiohttp import web

from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.config import Limits, ServerConfig
from csm_tts_plugin.server.app import create_app, create_runner
from csm_tts_plugin.server.state import STATE, ServerState
from tests.support.routed import routing
from tests.support.stand_in_engine import StandInEngine, pitch_of
from tests.support.waiting import until

BEHIND_ROUTER = bool(os.environ.get("BEHIND_ROUTER"))
"""Whether a router is put in front of the servers; clients must see no difference."""


@dataclass
class Running:
    engine: StandInEngine
    url: str
    app: web.Application
    limits: Limits

    @property
    def state(self) -> ServerState:
        return self.app[STATE]

    async def settle(self) -> None:
        """Waits until every conversation is freed and every session has ended."""
        await until(lambda: self.engine.idle and not self.state.sessions)


@asynccontextmanager
async def serving(engine=None, *, limits=None, **settings):
    engine = engine or StandInEngine()
    limits = limits or Limits()
    config = ServerConfig(port=0, limits=limits, **settings)
    app = create_app(engine, config)
    runner = create_runner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    engine.start()
    host, port = runner.addresses[0][:2]
    url = f"http://{host}:{port}"
    async with AsyncExitStack() as stack:
        stack.push_async_callback(asyncio.to_thread, engine.stop)
        stack.push_async_callback(runner.cleanup)
        if BEHIND_ROUTER:
            router = await stack.enter_async_context(routing([url], limits=limits, **settings))
            url = router.url
        yield Running(engine, url, app, limits)


@pytest.fixture
async def server():
    async with serving() as running:
        yield running
        await running.settle()


@pytest.fixture
async def client(server):
    async with EngineClient(server.url) as client:
        yield client


@pytest.fixture(autouse=True)
async def nothing_left():
    """No task and no descriptor outlives a test."""
    before = descriptors()
    yield
    await until(lambda: len(asyncio.all_tasks()) <= 1 and descriptors() <= before)


def descriptors() -> int:
    """Number of open descriptors; 0 where the system does not report it."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0


def figure(server, name, **labels) -> float:
    """The current value of a counter of `/metrics`."""
    return server.state.metrics.registry.get_sample_value(name, labels)


async def listen(utterance):
    return [chunk async for chunk in utterance]


def wave(chunks):
    return np.frombuffer(b"".join(chunk.pcm for chunk in chunks), "<i2") / 32767.0


def pitch(samples, rate=24_000) -> float:
    """The strongest frequency, in Hz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 8 * len(samples)))
    return float(np.argmax(spectrum) * rate / (8 * len(samples)))


def speaks(chunks, text, rate=24_000) -> bool:
    """Whether this is the stand-in's sound of `text`, and of nothing else."""
    samples = wave(chunks)
    return abs(pitch(samples, rate) - pitch_of(text)) < 20.0


def limits_of(**changes) -> Limits:
    return replace(Limits(), **changes)
