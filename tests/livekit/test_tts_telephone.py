"""Telephone timing: a cancel takes effect within one step of 80 ms."""

from __future__ import annotations

import asyncio
import os
import random

import pytest

from csm_tts_plugin.engine.api import Audio
from csm_tts_plugin.tts import TTS
from tests.livekit.speech import PATIENT
from tests.support.waiting import until

SEED = int(os.environ.get("TEST_SEED", "20261122"))
LONG = "This reply is long enough to be stopped somewhere in the middle of what it has to say. "


@pytest.fixture
def late(server, monkeypatch):
    """Number of frames that the engine made after receiving the cancel, by utterance id."""
    engine, cancelled, frames = server.engine, set(), {}
    say, cancel = engine.say, engine.cancel

    def watched(conversation, text, sink, **more):
        def count(event):
            if isinstance(event, Audio):
                frames.setdefault(event.utterance, 0)
                frames[event.utterance] += event.utterance in cancelled
            sink(event)

        return say(conversation, text, count, **more)

    def handed_over(utterance):
        cancel(utterance)
        cancelled.add(utterance)

    monkeypatch.setattr(engine, "say", watched)
    monkeypatch.setattr(engine, "cancel", handed_over)
    return frames


async def test_at_most_one_frame_is_made_after_a_cancel_and_none_is_heard(server, late):
    print("seed", SEED)
    rng = random.Random(SEED)
    server.engine.frame_s = 0.003
    async with TTS(engine_url=server.url, sample_rate=8_000) as speaker:
        for _ in range(50):
            stream = speaker.stream(conn_options=PATIENT)
            stream.push_text(LONG * 2)
            for _ in range(rng.randrange(1, 6)):
                await anext(stream)
            await asyncio.sleep(rng.random() * 0.004)
            await stream.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
            await until(lambda: server.engine.utterances == 0)
    assert len(late) >= 50
    assert max(late.values()) <= 1
