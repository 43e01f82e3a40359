"""A withdrawn voice is deleted in the plugin and in the engine's caches."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from csm_tts_plugin.config import EngineConfig
from csm_tts_plugin.engine.core import Engine
from csm_tts_plugin.tts import TTS
from csm_tts_plugin.voices.voice import Consent, Voice
from csm_tts_plugin.wire.protocol import InlineVoice
from tests.livekit.speech import speak
from tests.server.conftest import nothing_left, serving
from tests.support.waiting import until

__all__ = ["nothing_left"]

pytestmark = pytest.mark.timeout(300)

CALLER = "caller"
WORDS = "A tone that shall be forgotten."


def voice(pitch: float = 140.0) -> Voice:
    times = np.arange(24_000) / 24_000
    sound = (0.3 * np.sin(2 * np.pi * pitch * times)).astype(np.float32)
    consent = Consent(speaker="Nobody", statement="A tone.", date="2025-01-31")
    return Voice.from_audio(sound, 24_000, transcript=WORDS, consent=consent, speaker=CALLER)


@pytest.fixture
async def engine():
    """csm-tiny behind a real server, in this process so that tests can inspect its caches."""
    engine = Engine(
        EngineConfig(model="tiny", device="cpu", slots=1, queue=1, threads=1, whole_context=True)
    )
    async with serving(engine) as running:
        await until(lambda: engine.status().ready)
        engine.url = running.url
        yield engine


async def say(speaker: TTS) -> None:
    assert len((await speak(speaker, "Yes.")).samples)


def cached(engine: Engine, key: str) -> bool:
    rounds = engine._rounds
    return key in rounds._voices or key in rounds._runner._voices


def knows(engine: Engine, name: str) -> bool:
    """Whether any conversation holds a turn of that speaker."""
    conversations = list(engine._conversations.values())
    return any(record.name == name for c in conversations for record in c.records)


def kept_references() -> list[InlineVoice]:
    """Every reference of these tests, with its audio, that still exists in this process."""
    gc.collect()
    everything = [thing for thing in gc.get_objects() if type(thing) is InlineVoice]
    return [voice for voice in everything if voice.transcript == WORDS]


async def test_giving_up_a_voice_leaves_nothing_of_it_before_anything_else_is_said(engine):
    mine = voice()
    async with TTS(engine_url=engine.url, voice=mine, seed=1, max_seconds=0.4) as speaker:
        speaker.add_turn(CALLER, "What I said.", mine.audio, 24_000)
        await say(speaker)
        assert cached(engine, mine.key)
        assert knows(engine, CALLER)
        assert kept_references()

        speaker.update_options(voice=None)
        await until(lambda: not cached(engine, mine.key))
        assert not knows(engine, CALLER)
        await until(lambda: not kept_references())  # in the plugin and in the server
        await say(speaker)
        assert not cached(engine, mine.key)


async def test_a_better_reference_leaves_nothing_of_the_first(engine):
    first, second = voice(140.0), voice(170.0)
    async with TTS(engine_url=engine.url, voice=first, seed=1, max_seconds=0.4) as speaker:
        await say(speaker)
        speaker.update_options(voice=second)
        await until(lambda: cached(engine, second.key) and not cached(engine, first.key))


async def test_the_end_of_a_call_leaves_nothing_of_its_voice(engine):
    mine = voice()
    async with TTS(engine_url=engine.url, voice=mine, seed=1, max_seconds=0.4) as speaker:
        await say(speaker)
        assert cached(engine, mine.key)
    await until(lambda: not cached(engine, mine.key) and not engine._conversations)
    assert not any(cache.any() for cache in engine._rounds._runner.state.keys)
    del speaker
    await until(lambda: not kept_references())


async def test_one_call_giving_up_a_voice_takes_it_from_no_other(engine):
    mine = voice()
    options = {"engine_url": engine.url, "voice": mine, "seed": 1, "max_seconds": 0.4}
    async with TTS(**options) as one, TTS(**options) as other:
        await say(one)
        await say(other)
        one.update_options(voice=None)
        await say(one)
        assert cached(engine, mine.key)
        await say(other)
    await until(lambda: not cached(engine, mine.key))
