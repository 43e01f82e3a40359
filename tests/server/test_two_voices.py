"""Two clients of one real engine, each with its caller's voice: each gets only its own."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest

from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.config import SAMPLE_RATE, EngineConfig
from csm_tts_plugin.engine.core import Engine
from csm_tts_plugin.voices.voice import Consent, Voice
from tests.engine.tools import noise, small_checkpoint
from tests.server.conftest import serving
from tests.support.waiting import until

TEXTS = ("One more.", "Two of us.")
UTTERANCES = 12
"""Per client."""
CONSENT = Consent(speaker="Nobody", statement="Noise of a test.", date="2025-01-31")


def voice(seed):
    """A random model's greedy codes depend on the reference audio: other noise, other audio."""
    return Voice.from_audio(
        noise(1.0, seed), SAMPLE_RATE, transcript=f"my voice {seed}", consent=CONSENT
    ).inline()


async def opened(client, spoken_in):
    return await client.conversation(spoken_in, temperature=0.0)


async def heard(conversation, text, chunks=None):
    """16-bit samples of one utterance, or of its first `chunks`; the rest is then cancelled."""
    parts = []
    async for chunk in await conversation.say(text, max_seconds=0.4):
        parts.append(chunk.pcm)
        if len(parts) == chunks:
            break
    return np.frombuffer(b"".join(parts), "<i2").astype(np.int64)


async def alone(client, voices):
    """The audio of each text in each voice while no other client speaks."""
    truth = {}
    for name, spoken_in in voices.items():
        for text in TEXTS:
            conversation = await opened(client, spoken_in)
            truth[name, text] = await heard(conversation, text)
            await conversation.aclose()
    return truth


def same(samples, truth):
    """Equal up to rounding, which differs between batches."""
    return bool(np.max(np.abs(samples - truth[: len(samples)])) <= 3)


async def call(client, mine, truth, rng):
    """Changes the voice before each utterance; stops some, then closes the conversation."""
    conversation, name, foreign = None, None, 0
    for _ in range(UTTERANCES):
        name = rng.choice([other for other in mine if other != name])
        if conversation is None:
            conversation = await opened(client, mine[name])
        else:
            await conversation.set_voice(mine[name], temperature=0.0)
        text, chunks = rng.choice(TEXTS), rng.choice((None, None, None, 1))
        samples = await heard(conversation, text, chunks)
        assert len(samples) == len(truth[name, text]) or chunks
        foreign += not same(samples, truth[name, text])
        if chunks:
            await conversation.aclose()
            conversation = None
    return foreign


@pytest.mark.timeout(300)
async def test_clients_of_one_engine_hear_their_own_callers_voice_only():
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    config = EngineConfig(model="small", slots=2, queue=2, threads=1, watermark="off")
    engine = Engine(config, checkpoint=small_checkpoint(3))
    callers = [{n: voice(n) for n in (1, 2)}, {n: voice(n) for n in (3, 4)}]
    for caller in callers:
        caller["stock"] = "stock"
    async with serving(engine) as server:
        await until(lambda: engine.status().ready)
        async with EngineClient(server.url, timeout=60.0) as client:
            truth = await alone(client, callers[0] | callers[1])
            for text in TEXTS:
                for one, other in ((1, 3), (2, 4), (1, "stock"), (3, "stock")):
                    assert not same(truth[one, text], truth[other, text])
            foreign = await asyncio.gather(
                *(call(client, caller, truth, random.Random(seed + n))
                  for n, caller in enumerate(callers))
            )  # fmt: skip
        assert foreign == [0, 0]
        await until(lambda: not engine._conversations and not server.state.sessions)
        assert not engine._rounds._voices
