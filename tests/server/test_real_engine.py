"""End to end with the model `tiny`: engine process, socket, client, audio."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.config import EngineConfig, ServerConfig
from csm_tts_plugin.server.supervisor import EngineProcess
from tests.server.conftest import listen, wave

TEXT = "Hello there."


@pytest.mark.timeout(600)
async def test_tiny_speaks_through_a_supervised_engine():
    # Where the watermark of a live stream begins depends on timing, and two runs are compared.
    config = EngineConfig("tiny", device="cpu", slots=2, queue=2, threads=1, watermark="off")
    with EngineProcess(config, ServerConfig(port=0), start_timeout=300.0) as engine:
        url = await engine.ready(300.0)
        async with EngineClient(url, key=engine.key, timeout=120.0) as client:
            status = await client.status()
            assert (status["model"], status["slots"]) == ("tiny", 2)
            conversation = await client.conversation(rate=16_000, seed=7)
            await conversation.turn("caller", "Who is there?")
            first = await conversation.say(TEXT, max_seconds=0.8)
            chunks = await listen(first)
            samples = wave(chunks)
            assert first.result.frames >= 1
            assert len(samples) == first.result.frames * 1280
            assert np.max(np.abs(samples)) > 0.0

            again = await client.conversation(rate=16_000, seed=7)
            await again.turn("caller", "Who is there?")
            same = wave(await listen(await again.say(TEXT, max_seconds=0.8)))
            # The same codes; how many frames are decoded at once depends on timing, and changes
            # the rounding of samples.
            assert same.shape == samples.shape
            assert np.abs(same - samples).max() <= 1.01 / 32767

            async for _ in await conversation.say(TEXT * 4):
                break
            await until_free(client)


async def until_free(client):
    async with asyncio.timeout(60):
        while (await client.status())["speaking"]:  # noqa: ASYNC110  another process
            await asyncio.sleep(0.05)
