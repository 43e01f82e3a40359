"""A `TTS` belongs to the event loop of its first use; another loop gets a clear error."""

from __future__ import annotations

import asyncio
import threading

import pytest
from livekit.agents import APIError
from livekit.agents.types import APIConnectOptions

from csm_tts_plugin import TTS
from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.errors import ConfigError
from tests.server.test_process import line_with, process

LINE = "It is a fine day to be heard."
ONCE = APIConnectOptions(max_retry=0)


@pytest.fixture
def address():
    """Address of an engine in its own process."""
    with process("--model", "ready", "--port", "0") as engine:
        url = line_with(engine, "listening").split()[-1]
        line_with(engine, "ready:")
        yield url


async def spoken(voice):
    """Number of samples; raises LiveKit's error on failure."""
    async with voice.synthesize(LINE, conn_options=ONCE) as stream:
        return sum([event.frame.samples_per_channel async for event in stream])


def test_the_second_loop_is_told_what_to_do(address):
    box = {}

    async def first():
        box["voice"] = TTS(engine_url=address)
        assert await spoken(box["voice"]) > 10_000

    async def second():
        with pytest.raises(APIError, match="another event loop"):
            await spoken(box["voice"])
        with pytest.raises(ConfigError, match="another event loop"):
            box["voice"].add_turn("caller", "Hello.")
        await box["voice"].aclose()

    asyncio.run(first())
    asyncio.run(second())


def test_a_loop_that_ends_closes_its_connections(address):
    """Even if nothing else does: the engine would hold the call until a heartbeat fails."""
    held = []

    async def first():
        held.append(await EngineClient(address).conversation())

    asyncio.run(first())
    assert held[0]._link.socket.closed


def test_two_loops_at_once_each_with_a_tts_of_its_own_speak(address):
    async def one():
        voice = TTS(engine_url=address)
        samples = await spoken(voice)
        await voice.aclose()
        return samples

    found = []
    threads = [threading.Thread(target=lambda: found.append(asyncio.run(one()))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 3
    assert len(set(found)) == 1
    assert found[0] > 10_000


def test_a_tts_made_before_any_loop_may_be_used_in_one(address):
    voice = TTS(engine_url=address)
    voice.add_turn("caller", "Hello.")

    async def use():
        assert await spoken(voice) > 10_000
        await voice.aclose()

    asyncio.run(use())


def test_a_client_says_so_too(address):
    client = EngineClient(address)
    asyncio.run(client.status())

    async def second():
        with pytest.raises(ConfigError, match="one for each loop"):
            await client.conversation()

    asyncio.run(second())
