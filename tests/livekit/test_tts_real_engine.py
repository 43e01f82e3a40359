"""End to end: a TTS, its own engine process, and the model csm-tiny."""

from __future__ import annotations

import asyncio
import os
import signal

import numpy as np
import pytest
from livekit.agents import APIConnectOptions

from csm_tts_plugin.client import engines
from csm_tts_plugin.tts import TTS
from csm_tts_plugin.voices.voice import Consent, Voice
from tests.livekit.speech import Events, speak
from tests.support.waiting import LIMIT_S

STARTING = APIConnectOptions(max_retry=0, timeout=150.0)
LONG = "This reply goes on for a while, so that there is time to stop it in the middle. " * 2

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def warm():
    """One engine for all tests of this file: it stays while the tests close their TTS."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CSM_ENGINE_URL", raising=False)
        keeper = TTS(model="tiny")
        keeper.prewarm()
        process().wait_ready(150)
        yield
        asyncio.run(keeper.aclose())


@pytest.fixture
async def speaker(warm):
    async with TTS(model="tiny", seed=1, max_seconds=4.0, sample_rate=16_000) as speaker:
        yield speaker


def voice() -> Voice:
    times = np.arange(2 * 24_000) / 24_000
    sound = (0.3 * np.sin(2 * np.pi * 140 * times) * np.sin(2 * np.pi * 3 * times)).astype("f4")
    consent = Consent(speaker="Nobody", statement="A tone.", date="2025-01-31")
    return Voice.from_audio(sound, 24_000, transcript="A tone.", consent=consent)


def process():
    (shared,) = engines._running.values()
    return shared.process


async def test_a_reply_is_spoken_whole(speaker):
    events = Events().watch(speaker)
    for how in ("stream", "synthesize"):
        speech = await speak(speaker, "Hello there. How are you?", options=STARTING, how=how)
        assert len(speech.samples) >= 16_000 * 0.16
        assert np.isfinite(speech.samples).all()
        assert speech.events[-1].is_final
        assert "".join(speech.transcripts) == "Hello there. How are you?"
    assert len(events.metrics) == 2
    assert events.errors == []


async def test_a_voice_and_turns_are_taken(speaker):
    speaker.update_options(voice=voice())
    speaker.add_turn("caller", "What I said.", voice().audio, 24_000)
    first = await speak(speaker, "Yes.", options=STARTING)
    speaker.update_options(voice=None)
    second = await speak(speaker, "Yes.", options=STARTING)
    assert len(first.samples)
    assert len(second.samples)


async def test_a_cancelled_reply_frees_the_engine(speaker):
    async with speaker.stream(conn_options=STARTING) as stream:
        stream.push_text(LONG)
        await anext(stream)
    client = await speaker._engine.client()
    await _until_idle(client)
    assert len((await speak(speaker, "Go on.", options=STARTING)).samples)


async def test_a_reply_goes_on_when_its_engine_was_killed(speaker):
    await speak(speaker, "Before.", options=STARTING)
    before = process().pid
    async with speaker.stream(conn_options=STARTING) as stream:
        stream.push_text(LONG)
        stream.end_input()
        await anext(stream)
        os.kill(before, signal.SIGKILL)
        rest = [event async for event in stream]
    assert process().pid not in (None, before)
    assert rest[-1].is_final
    assert len((await speak(speaker, "After.", options=STARTING)).samples)


async def _until_idle(client) -> None:
    async with asyncio.timeout(LIMIT_S):
        while (await client.status())["speaking"]:  # noqa: ASYNC110  a poll
            await asyncio.sleep(0.05)
