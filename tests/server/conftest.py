"""A server with a stand-in engine on a real socket, and clients of it; nothing may be left over."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import numpy as np
import pytest
from aiohttp import web

from csm_tts_plugin.client import EngineClient
from csm_tts_plugin.config import Limits, ServerConfig
from csm_tts_plugin.server.app import create_app, create_runner
from csm_tts_plugin.server.state import STATE, ServerState
from tests.support.stand_in_engine import StandInEngine, pitch_of


@dataclass
class Running:
    engine: StandInEngine
    url: str
    state: ServerState
    limits: Limits

    async def settle(self) -> None:
        """Until every conversation is freed and every session gone."""
        await until(lambda: self.engine.idle and not self.state.sessions)


async def until(condition, seconds: float = 20.0) -> None:
    """Wait for what must come soon; generous, for the machine may be busy."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  the engine's thread sets no event
            await asyncio.sleep(0.005)


@asynccontextmanager
async def serving(engine=None, *, key=None, limits=None, voices_dir=None):
    engine = engine or StandInEngine()
    limits = limits or Limits()
    config = ServerConfig(port=0, key=key, limits=limits, voices_dir=voices_dir)
    app = create_app(engine, config)
    runner = create_runner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    engine.start()
    host, port = runner.addresses[0][:2]
    try:
        yield Running(engine, f"http://{host}:{port}", app[STATE], limits)
    finally:
        await runner.cleanup()
        await asyncio.to_thread(engine.stop)


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
    await until(lambda: len(asyncio.all_tasks()) <= 1 and descriptors() <= before, 5.0)


def descriptors() -> int:
    """How many are open; 0 where the system does not say."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0


def figure(server, name, **labels) -> float:
    """A counter of `/metrics` as it is now."""
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
